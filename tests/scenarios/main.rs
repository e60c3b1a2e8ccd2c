//! Every scenario, one file a topic; a file that is not listed here fails `structure::no_forgotten_file`.
//!
//! `--list` names the tests; a name or a part of it runs those alone. The judges need the tools
//! that `tests/run` installs; a missing tool is a failure, never a skip.
#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::string_slice,
    clippy::large_futures,
    reason = "a test prints, panics with a text, knows its strings, and runs once"
)]

mod balance;
mod cancel;
mod control_plane;
mod control_script;
mod drain;
mod events;
mod exposed;
mod failure;
mod floods;
mod foreign;
mod goodbye;
mod grpc_retry;
mod harness;
mod hostile;
mod http1;
mod http2;
mod identity;
mod judges;
mod killed;
mod machines;
mod memory;
mod observe;
mod opaque;
mod opaque_policy;
mod oracle;
mod panics;
mod paths;
mod processes;
mod protect;
mod proxy;
mod quota;
mod reliability;
mod rolling;
mod routes;
mod server_first;
mod slow_readers;
mod smuggling;
mod structure;
mod tcp;
mod toxics;
mod upgrade;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    // Each test starts several programs; more at once would measure the machine.
    arguments.test_threads.get_or_insert(3);
    let tests = [
        structure::tests(),
        harness::tests(),
        http1::tests(),
        http2::tests(),
        upgrade::tests(),
        tcp::tests(),
        toxics::tests(),
        opaque::tests(),
        processes::tests(),
        goodbye::tests(),
        killed::tests(),
        protect::tests(),
        opaque_policy::tests(),
        proxy::tests(),
        quota::tests(),
        routes::tests(),
        failure::tests(),
        balance::tests(),
        cancel::tests(),
        smuggling::tests(),
        hostile::tests(),
        drain::tests(),
        events::tests(),
        exposed::tests(),
        floods::tests(),
        grpc_retry::tests(),
        foreign::tests(),
        observe::tests(),
        oracle::tests(),
        panics::tests(),
        paths::tests(),
        control_plane::tests(),
        control_script::tests(),
        identity::tests(),
        machines::tests(),
        reliability::tests(),
        rolling::tests(),
        server_first::tests(),
        slow_readers::tests(),
        memory::tests(),
        judges::tests(),
    ];
    let conclusion = libtest_mimic::run(&arguments, tests.into_iter().flatten().collect());
    for figure in outrigger_tests::world::figures() {
        println!("figure: {figure}");
    }
    conclusion.exit();
}
