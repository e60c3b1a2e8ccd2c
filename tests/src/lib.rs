//! The harness of the scenario tests: real programs on loopback, scripted apps, raw clients.
//!
//! Read in this order:
//! - [`runner`]: a scenario is an async function of a [`World`]; logs are shown when it fails;
//! - [`world`]: one test's scratch folder and processes, all ended when it is dropped;
//! - [`mesh`]: sidecars in static mode around apps; [`control`]: the same under a control plane;
//! - [`apps`]: apps that behave badly on purpose and count what they saw;
//! - [`http1`], [`client`], [`h2`]: HTTP as bytes, so that a test sees exactly what was sent;
//! - [`control_script`]: a control plane that sends what a real one never would; [`fleet`]: who is in the mesh, every moment;
//! - [`pki`]: certificates, good and bad;
//! - [`load`]: requests that go on meanwhile;
//! - [`tools`]: judges that did not come from us; [`golden`]: their kept verdicts; [`toxiproxy`] and [`line`](mod@line): bad lines.
//!
//! It refuses to know the programs' code: everything is asked through sockets, files and signals.

pub mod apps;
pub mod client;
pub mod control;
pub mod control_script;
pub mod fleet;
pub mod golden;
pub mod h2;
pub mod http1;
pub mod line;
pub mod load;
pub mod mesh;
pub mod pki;
pub mod ports;
pub mod process;
pub mod runner;
pub mod tools;
pub mod toxiproxy;
pub mod wait;
pub mod world;

pub use world::World;
