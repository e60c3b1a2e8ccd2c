//! Who is who: the certificate authority, the tokens by which workloads join, and what was revoked.

mod asker;

pub use asker::Asker;
