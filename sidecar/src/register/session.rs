//! The session's loop: what changed here goes up, what is asked there is done.

use crate::shared::Shared;

pub(super) async fn run(shared: &Shared, url: &str) {
    let _unused = (shared, url);
}
