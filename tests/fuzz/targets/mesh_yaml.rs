//! mesh.yaml: a mesh, or errors that can be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_control_plane::config;

fuzz_target!(|text: &str| {
    if let Err(errors) = config::parse("mesh.yaml", text) {
        // Spans point into the text, whatever it holds.
        assert!(!errors.render(false).is_empty());
    }
});
