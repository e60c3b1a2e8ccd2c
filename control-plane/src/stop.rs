//! One signal that ends every stream and task of a control plane.

use tokio::sync::watch;

/// Waits for the end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// Gives the signal; dropping it gives it too.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// A signal that has not been given.
#[must_use]
pub fn signal() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Gives the signal.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns once the signal was given. Cancel safe.
    pub async fn stopped(&self) {
        let mut receiver = self.0.clone();
        // An error means that the stopper is gone, which ends everything as well.
        let _ended = receiver.wait_for(|stopped| *stopped).await.is_err();
    }
}
