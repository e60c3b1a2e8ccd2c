//! Tables and properties of the protocol.
