//! The one program.
#[allow(dead_code)]
mod supervise;
fn main() {}
