//! How hyper's own tasks are started.

use hyper::rt::Executor;

/// Spawns each future in a box of its own.
///
/// hyper spawns one future type for each request and for the whole connection, and so the future of a request is as
/// large as a connection (about 2 KB). tokio copies a future several times on its way into a task, and once more when
/// it ends; a box is copied once.
#[derive(Debug, Clone, Copy)]
pub struct Boxed;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Boxed {
    fn execute(&self, future: F) {
        // Owned by its connection: it ends with it.
        tokio::spawn(Box::pin(future));
    }
}
