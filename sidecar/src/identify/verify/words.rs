//! Refusals and alerts in words.

use rustls::{AlertDescription, CertificateError, OtherError};

use super::Refusal;
use crate::identify::NotAdmitted;

/// The refusal that rustls carries, in words.
pub(in crate::identify) fn describe(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return error.to_string();
    };
    match certificate {
        CertificateError::ExpiredContext { time, not_after } => chain(&webpki::Error::CertExpired {
            time: *time,
            not_after: *not_after,
        }),
        CertificateError::NotValidYetContext { time, not_before } => chain(&webpki::Error::CertNotValidYet {
            time: *time,
            not_before: *not_before,
        }),
        CertificateError::UnknownIssuer => chain(&webpki::Error::UnknownIssuer),
        CertificateError::Revoked => NotAdmitted::Revoked.to_string(),
        CertificateError::Other(OtherError(refusal)) => refusal.to_string(),
        other => other.to_string(),
    }
}

/// What a peer's alert says about our certificate (RFC 8446 §6.2), in words.
pub(in crate::identify) fn alert(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::CertificateExpired => {
            "by its clock our certificate has expired or is not valid yet: if it has not, one of the two clocks is wrong"
                .into()
        }
        A::CertificateRevoked => "it says that our certificate is revoked".into(),
        A::UnknownCA => "it does not trust the root of our certificate".into(),
        A::CertificateRequired => "it demands a certificate".into(),
        A::NoApplicationProtocol => "it does not speak what we asked for".into(),
        A::ProtocolVersion => "it does not speak TLS 1.3".into(),
        A::AccessDenied | A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate => {
            "it does not accept our certificate".into()
        }
        other => format!("{other:?}"),
    }
}

/// What went wrong with a chain, in words.
pub(super) fn chain(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => {
            let late = rough(time.as_secs().saturating_sub(not_after.as_secs()));
            format!("its certificate expired {late} ago by this machine's clock")
        }
        E::CertNotValidYet { time, not_before } => {
            let early = rough(not_before.as_secs().saturating_sub(time.as_secs()));
            format!(
                "its certificate becomes valid in {early} by this machine's clock, which is at least that far behind \
                 the clock of whoever issued it"
            )
        }
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => {
            "its certificate does not lead to a root that is trusted here".into()
        }
        E::RequiredEkuNotFoundContext(_) => Refusal::Usage.to_string(),
        E::CaUsedAsEndEntity => "it shows a CA's certificate as its own".into(),
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => "its chain is longer than its CA allows".into(),
        other => format!("its certificate is not accepted: {other}"),
    }
}

/// A time that people can read.
pub(in crate::identify) fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}
