//! The spelling of enums in files of resources: `http`, not `2`.
//!
//! Each module is a serde `with` target for one `i32` enum field of [`crate::wire::mesh`].

macro_rules! spelled {
    ($(#[$doc:meta])* $module:ident, $enum:path, [$($name:literal => $variant:ident),+ $(,)?]) => {
        $(#[$doc])*
        pub mod $module {
            use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};
            use $enum as Enum;

            /// Every spelling, in the order of the wire numbers.
            pub const NAMES: &[&str] = &[$($name),+];

            /// The spelling of `value`; none for 0 and for numbers that do not exist.
            #[must_use]
            pub fn name(value: i32) -> Option<&'static str> {
                match Enum::try_from(value) {
                    $(Ok(Enum::$variant) => Some($name),)+
                    _ => None,
                }
            }

            /// The wire number of `name`.
            #[must_use]
            pub fn parse(name: &str) -> Option<i32> {
                match name {
                    $($name => Some(Enum::$variant as i32),)+
                    _ => None,
                }
            }

            #[allow(missing_docs, clippy::missing_errors_doc)]
            pub fn serialize<S: Serializer>(value: &i32, out: S) -> Result<S::Ok, S::Error> {
                name(*value).serialize(out)
            }

            #[allow(missing_docs, clippy::missing_errors_doc)]
            pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<i32, D::Error> {
                match Option::<String>::deserialize(input)? {
                    None => Ok(0),
                    Some(text) => parse(&text).ok_or_else(|| D::Error::unknown_variant(&text, NAMES)),
                }
            }
        }
    };
}

spelled!(
    /// `Protocol`.
    protocol, crate::wire::mesh::Protocol,
    ["auto" => Auto, "http" => Http, "http2" => Http2, "grpc" => Grpc, "tcp" => Tcp, "tls" => Tls]
);
spelled!(
    /// `Balance`.
    balance, crate::wire::mesh::Balance,
    [
        "p2c_peak_ewma" => P2cPeakEwma, "least_request" => LeastRequest, "round_robin" => RoundRobin, "random" => Random,
        "ring" => Ring, "maglev" => Maglev,
    ]
);
spelled!(
    /// `AccessLog`.
    access_log, crate::wire::mesh::AccessLog,
    ["off" => Off, "json" => Json]
);
spelled!(
    /// `Mode`.
    mode, crate::wire::mesh::Mode,
    ["strict" => Strict, "permissive" => Permissive, "off" => Disabled]
);
spelled!(
    /// `Access.Default`.
    access_default, crate::wire::mesh::access::Default,
    ["allow" => Allow, "deny" => Deny]
);
spelled!(
    /// `Underscores`.
    underscores, crate::wire::mesh::Underscores,
    ["reject" => Reject, "drop" => Drop, "allow" => Allow]
);
spelled!(
    /// `Trailers`.
    trailers, crate::wire::mesh::Trailers,
    ["pass" => Pass, "drop" => Drop]
);
spelled!(
    /// `External.Mode`.
    external_mode, crate::wire::mesh::external::Mode,
    ["allow" => Allow, "deny" => Deny, "list" => List]
);
