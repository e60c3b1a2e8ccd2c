//! A control plane that sends what a real one never would.
