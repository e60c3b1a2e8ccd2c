//! The text that lets somebody join: `ogt1.<id>.<secret>.<hash of the root>`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::FieldError;

const PREFIX: &str = "ogt1";
/// Hexadecimal digits of an id.
const ID: usize = 12;

/// A token as it is carried. Its `Debug` keeps the secret; its `Display` is the whole token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// 12 lower-case hexadecimal digits; not secret.
    pub id: String,
    /// What proves it.
    pub secret: [u8; 32],
    /// SHA-256 of the DER of the root certificate that the control plane must show.
    pub root: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.…", self.id)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8; 32]| URL_SAFE_NO_PAD.encode(bytes);
        write!(f, "{PREFIX}.{}.{}.{}", self.id, text(&self.secret), text(&self.root))
    }
}

impl FromStr for JoinToken {
    type Err = FieldError;

    /// The error does not repeat the text: it may hold most of a secret.
    fn from_str(text: &str) -> Result<Self, FieldError> {
        let wrong = |reason: &str| FieldError::new("token", reason.to_owned());
        let mut parts = text.trim().split('.');
        let (Some(prefix), Some(id), Some(secret), Some(root), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong(
                "not a token: four parts divided by dots, of which the first is ogt1",
            ));
        };
        if prefix != PREFIX {
            return Err(wrong("not a token of this version: it does not begin with ogt1"));
        }
        if id.len() != ID || !id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(wrong("its id is not 12 lower-case hexadecimal digits"));
        }
        let bytes = |text: &str| -> Option<[u8; 32]> { URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok() };
        Ok(Self {
            id: id.to_owned(),
            secret: bytes(secret).ok_or_else(|| wrong("its secret is cut short or damaged"))?,
            root: bytes(root).ok_or_else(|| wrong("its hash of the root is cut short or damaged"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_nothing_else_is_one() {
        let token = JoinToken {
            id: "0123456789ab".into(),
            secret: std::array::from_fn(|i| 255 - i as u8),
            root: [7; 32],
        };
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().expect("a token"), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().expect("from a file"), token);
        assert!(!format!("{token:?}").contains(text.split('.').nth(2).expect("the secret")));
        for cut in 0..text.len() {
            let cut = text.get(..cut).expect("ASCII");
            let error = cut.parse::<JoinToken>().expect_err("cut short").to_string();
            assert!(!error.contains(text.get(18..30).expect("ASCII")), "{error}");
        }
        for wrong in [
            text.replace("ogt1", "ogt2"),
            text.replace("0123456789ab", "0123456789AB"),
            format!("{text}.x"),
            format!("{text}A"),
            text.replace('.', ":"),
        ] {
            assert!(wrong.parse::<JoinToken>().is_err(), "{wrong}");
        }
    }
}
