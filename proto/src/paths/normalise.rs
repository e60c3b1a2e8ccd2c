//! The one form of a path in which rules are compared (RFC 3986 §6.2.2), and the paths that have none because
//! programs read them differently.
//!
//! Decoded: percent-encoded unreserved characters, apart from the dot, which is refused. Upper case: the hexadecimal
//! digits of the others. Encoded: bytes that a path may not contain as they are (RFC 3986 §3.3), such as `"` and
//! anything beyond ASCII. Path parameters (`/a;x=1`) are part of their segment, as RFC 3986 §3.3 has it: no pattern
//! matches `/admin;x` unless it could match `/admin` by a placeholder or says `;x`. Some servers cut them off before
//! they resolve dot segments, so `/..;/` and `/;/` are refused like `/../` and `//`.

use std::borrow::Cow;

/// Why a path is ambiguous. The texts go into logs and explanations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    /// Empty, `*`, or an absolute form.
    #[error("the path does not start with `/`")]
    NotAbsolute,
    /// `%2f`.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// `\` or `%5c`.
    #[error("the path has a backslash")]
    Backslash,
    /// `%2e`.
    #[error("the path has an encoded dot")]
    EncodedDot,
    /// NUL or `%00`.
    #[error("the path has a NUL")]
    Nul,
    /// `%252f` and the like: one of the above for whoever decodes twice.
    #[error("the path has a slash, backslash, dot or NUL that is encoded twice")]
    EncodedTwice,
    /// `%c0%af` and the like: one of the above for a lenient UTF-8 decoder (RFC 3629 §10).
    #[error("the path has a character encoded in more bytes than it needs")]
    Overlong,
    /// `%` without two hexadecimal digits.
    #[error("the path has a `%` without two hexadecimal digits")]
    BadEscape,
    /// A space, another control character, `?` or `#`.
    #[error("the path has a space, a control character, `?` or `#`")]
    Illegal,
    /// `.` or `..`, also before a parameter.
    #[error("the path has a dot segment")]
    DotSegment,
    /// `//`, also with parameters in between.
    #[error("the path has an empty segment")]
    EmptySegment,
}

/// The path in normal form; borrowed when it is already in it. A normal path's normal form is itself.
///
/// # Errors
/// When an app could read the path otherwise than a rule does.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if !path.starts_with('/') {
        return Err(Ambiguous::NotAbsolute);
    }
    let bytes = path.as_bytes();
    // Filled from the first byte on that is not in normal form.
    let mut normal: Option<String> = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        if byte == b'%' {
            let escaped = escape(bytes, at).ok_or(Ambiguous::BadEscape)?;
            check_escape(bytes, at, escaped)?;
            let unreserved = is_unreserved(escaped);
            if normal.is_none() && (unreserved || has_lower_hex(bytes, at)) {
                normal = path.get(..at).map(String::from);
            }
            if let Some(out) = &mut normal {
                if unreserved {
                    out.push(char::from(escaped));
                } else {
                    push_escape(out, escaped);
                }
            }
            at += 3;
            continue;
        }
        match byte {
            b'\\' => return Err(Ambiguous::Backslash),
            0 => return Err(Ambiguous::Nul),
            0x01..=b' ' | 0x7f | b'?' | b'#' => return Err(Ambiguous::Illegal),
            _ if is_pchar(byte) || byte == b'/' => {
                if let Some(out) = &mut normal {
                    out.push(char::from(byte));
                }
            }
            _ => {
                // `at` may be inside a character only when `normal` exists already.
                let out = normal.get_or_insert_with(|| path.get(..at).unwrap_or_default().into());
                push_escape(out, byte);
            }
        }
        at += 1;
    }
    let normal = normal.map_or(Cow::Borrowed(path), Cow::Owned);
    // Of the normal form: `%25%32e` is `%252e`.
    check_twice(&normal)?;
    check_segments(&normal)?;
    Ok(normal)
}

/// The byte that the three at `at` stand for.
fn escape(bytes: &[u8], at: usize) -> Option<u8> {
    match bytes.get(at..at + 3) {
        Some(&[b'%', high, low]) => Some(hex(high)? << 4 | hex(low)?),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn has_lower_hex(bytes: &[u8], at: usize) -> bool {
    bytes
        .get(at + 1..at + 3)
        .is_some_and(|digits| digits.iter().any(u8::is_ascii_lowercase))
}

fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    out.push('%');
    out.push(DIGITS[usize::from(byte >> 4)]);
    out.push(DIGITS[usize::from(byte & 15)]);
}

/// Refuses escapes that some programs decode to a separator.
fn check_escape(bytes: &[u8], at: usize, escaped: u8) -> Result<(), Ambiguous> {
    let follower = || escape(bytes, at + 3);
    match escaped {
        b'/' => Err(Ambiguous::EncodedSlash),
        b'\\' => Err(Ambiguous::Backslash),
        b'.' => Err(Ambiguous::EncodedDot),
        0 => Err(Ambiguous::Nul),
        0xc0 | 0xc1 if matches!(follower(), Some(0x80..=0xbf)) => Err(Ambiguous::Overlong),
        0xe0 if matches!(follower(), Some(0x80..=0x9f)) => Err(Ambiguous::Overlong),
        0xf0 if matches!(follower(), Some(0x80..=0x8f)) => Err(Ambiguous::Overlong),
        _ => Ok(()),
    }
}

/// Refuses what becomes a separator when it is decoded until nothing is left to decode.
fn check_twice(path: &str) -> Result<(), Ambiguous> {
    for mut rest in path.split("%25").skip(1) {
        while let Some(more) = rest.strip_prefix("25") {
            rest = more;
        }
        if let Some(&[high, low]) = rest.as_bytes().get(..2)
            && let (Some(high), Some(low)) = (hex(high), hex(low))
            && matches!(high << 4 | low, b'/' | b'\\' | b'.' | 0)
        {
            return Err(Ambiguous::EncodedTwice);
        }
    }
    Ok(())
}

/// Refuses dot segments and empty ones (other than the last), with and without parameters.
fn check_segments(path: &str) -> Result<(), Ambiguous> {
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() {
            if segments.peek().is_some() {
                return Err(Ambiguous::EmptySegment);
            }
            continue;
        }
        // What is left for those that cut off parameters, and for those that decode first and then look for them or
        // for a query.
        let name = match segment.as_bytes() {
            [b'.' | b';' | b'%', ..] => cut(segment),
            _ => continue,
        };
        match name {
            "." | ".." => return Err(Ambiguous::DotSegment),
            "" => return Err(Ambiguous::EmptySegment),
            _ => {}
        }
    }
    Ok(())
}

fn cut(segment: &str) -> &str {
    let ends = [";", "%3B", "%3F", "%23"];
    let end = ends.iter().filter_map(|end| segment.find(end)).min();
    end.and_then(|end| segment.get(..end)).unwrap_or(segment)
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §3.3.
const fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        )
}
