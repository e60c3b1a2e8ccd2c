//! A real control plane and sidecars that register with it.
