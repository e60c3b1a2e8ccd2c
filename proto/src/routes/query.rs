//! Parameters of a query, as forms write them (WHATWG URL §5.1).

use std::borrow::Cow;

/// The first parameter's value, decoded; one without `=` is empty. Allocates only when the value is encoded.
pub(super) fn first<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // An empty piece, as in `a&&b`, is no parameter.
        (!pair.is_empty() && bytes(key).eq(name.bytes())).then(|| match value.contains(['%', '+']) {
            true => Cow::Owned(bytes(value).collect()),
            false => Cow::Borrowed(value.as_bytes()),
        })
    })
}

/// What is written, decoded byte for byte; an escape that is none stays as it is.
fn bytes(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (first, more) = rest.split_first()?;
        rest = more;
        Some(match first {
            b'+' => b' ',
            b'%' => match more {
                [high, low, after @ ..] => match (hex(*high), hex(*low)) {
                    (Some(high), Some(low)) => {
                        rest = after;
                        high << 4 | low
                    }
                    _ => b'%',
                },
                _ => b'%',
            },
            byte => *byte,
        })
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}
