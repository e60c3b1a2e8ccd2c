//! Real processes: whoever is killed, nothing remains. The test program starts itself again as front and as supervisor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outrigger_proto::model::Drain;
use tempfile::TempDir;

use super::back::{self, Attach};
use super::fleet::Plan;
use super::keep::Launch;
use super::state::{Layout, Up};
use super::tree::{self, INSTANCE, RUN};
use super::workload::Instance;
use super::{front, ports};

const ROLE: &str = "OUTRIGGER_TEST_ROLE";
const FOLDER: &str = "OUTRIGGER_TEST_FOLDER";
/// Set: the app is given much longer than a test may take.
const GRACE: &str = "OUTRIGGER_TEST_GRACE";
const ITSELF: [&str; 3] = ["--exact", "supervise::tests::plays_its_role", "--nocapture"];

/// An app with a child in its group, a child in a session of its own, and one that also cleared its environment. It
/// writes down their ids, and ends on SIGTERM without taking them along.
const FAMILY: &str = r#"
import os, subprocess, sys, time
rest = [sys.executable, "-c", "import time; time.sleep(600)"]
family = [
    subprocess.Popen(rest),
    subprocess.Popen(rest, start_new_session=True),
    subprocess.Popen(["env", "-i"] + rest, start_new_session=True),
]
text = " ".join(str(pid) for pid in [os.getpid()] + [one.pid for one in family])
with open("family.next", "w") as out:
    out.write(text)
os.rename("family.next", "family")
print("family of", os.getpid(), flush=True)
time.sleep(600)
"#;

/// An app that answers SIGTERM with "no".
const STUBBORN: &str = r#"
import os, signal, time
signal.signal(signal.SIGTERM, lambda number, frame: print("no", flush=True))
with open("family.next", "w") as out:
    out.write(str(os.getpid()))
os.rename("family.next", "family")
while True:
    time.sleep(600)
"#;

/// Does nothing among the other tests; started again by them it is the front or the supervisor.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the role is over; the test harness must not speak for it"
)]
fn plays_its_role() {
    let (Ok(role), Ok(folder)) = (std::env::var(ROLE), std::env::var(FOLDER)) else {
        return;
    };
    let layout = Layout::of(Path::new(&folder)).expect("layout");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    let code = runtime.block_on(async {
        if role == "front" {
            let mut command = Command::new(std::env::current_exe().expect("own path"));
            command.args(ITSELF).env(ROLE, "back").stdin(Stdio::null());
            front::run(&layout, command, || {}).await
        } else {
            back::run(layout, Attach::Follow, async |site| {
                let mut app = Launch::shell("exec python3 app.py", site.layout.root.clone());
                app.env = vec![(INSTANCE.to_owned(), "app-1".to_owned())];
                app.marks = vec![format!("{RUN}={}", site.run), format!("{INSTANCE}=app-1")];
                let instance = Instance {
                    service: "app".to_owned(),
                    name: "app-1".to_owned(),
                    language: "python".to_owned(),
                    app,
                    app_grace: std::env::var(GRACE).map_or(Duration::from_millis(500), |_| Duration::from_secs(600)),
                    sidecar: None,
                    drain: Drain::default(),
                    origin: None,
                    ports: Vec::new(),
                };
                let (mesh, control_plane) = ("test".to_owned(), ports::loopback(1));
                Ok(Plan {
                    mesh,
                    hint: None,
                    control: None,
                    control_plane,
                    tokens: None,
                    again: None,
                    instances: vec![instance],
                })
            })
            .await
        }
    });
    std::process::exit(match code {
        Ok(code) => i32::from(code),
        Err(error) => {
            eprintln!("{error:#}");
            9
        }
    });
}

/// A front that runs `app` in a folder of its own.
struct World {
    folder: TempDir,
    front: Child,
}

impl World {
    fn start(app: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("app.py"), app).expect("written");
        let front = start_front(folder.path(), &[]);
        Self { folder, front }
    }

    /// One whose app ignores SIGTERM.
    fn stubborn(variables: &[(&str, &str)]) -> (Self, Vec<Pid>) {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("app.py"), STUBBORN).expect("written");
        let front = start_front(folder.path(), variables);
        let world = Self { folder, front };
        let family = world.family(&[]);
        (world, family)
    }

    fn layout(&self) -> Layout {
        Layout::of(self.folder.path()).expect("layout")
    }

    /// The description once the app runs.
    fn up(&self) -> Up {
        let layout = self.layout();
        eventually("the app runs", || {
            layout
                .up()
                .filter(|up| up.services.first().is_some_and(|service| service.app_pid.is_some()))
        })
    }

    /// The ids of the app and its children, once they are all there; another family than `before`.
    fn family(&self, before: &[Pid]) -> Vec<Pid> {
        eventually("the family is complete", || {
            let text = fs::read_to_string(self.folder.path().join("family")).ok()?;
            let family: Vec<Pid> = text
                .split(' ')
                .map(|pid| Pid::from_raw(pid.parse().expect("a pid")))
                .collect();
            (before != family).then_some(family)
        })
    }

    fn code(&mut self) -> Option<i32> {
        eventually("the front ends", || self.front.try_wait().expect("waited")).code()
    }

    #[track_caller]
    fn nothing_remains(&self, family: &[Pid], up: &Up) {
        let mark = [format!("{RUN}={}", up.run)];
        eventually("no process remains", || {
            (family.iter().all(|pid| tree::started(*pid).is_none()) && tree::marked(&mark).is_empty()).then_some(())
        });
        let run: PathBuf = self.layout().run;
        eventually("the run folder is gone", || (!run.exists()).then_some(()));
        assert!(!self.layout().busy());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.front.id() as i32), Signal::SIGTERM).ok();
        self.front.wait().ok();
    }
}

fn start_front(folder: &Path, variables: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(ITSELF)
        .env(ROLE, "front")
        .env(FOLDER, folder)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

#[track_caller]
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_front_takes_everything_along() {
    let mut world = World::start(FAMILY);
    let (up, family) = (world.up(), world.family(&[]));
    kill(Pid::from_raw(up.pid), Signal::SIGKILL).expect("killed");
    world.code();
    world.nothing_remains(&family, &up);
}

#[test]
fn a_killed_supervisor_takes_everything_along() {
    let mut world = World::start(FAMILY);
    let (up, family) = (world.up(), world.family(&[]));
    kill(Pid::from_raw(up.supervisor), Signal::SIGKILL).expect("killed");
    assert_eq!(world.code(), Some(1));
    world.nothing_remains(&family, &up);
}

#[test]
fn an_asked_for_end_is_clean_and_code_0() {
    let mut world = World::start(FAMILY);
    let (up, family) = (world.up(), world.family(&[]));
    kill(Pid::from_raw(up.pid), Signal::SIGINT).expect("sent");
    assert_eq!(world.code(), Some(0));
    world.nothing_remains(&family, &up);
}

#[test]
fn a_killed_app_is_started_again_without_its_old_children() {
    let world = World::start(FAMILY);
    let before = world.family(&[]);
    kill(before[0], Signal::SIGKILL).expect("killed");
    let after = world.family(&before);
    assert_ne!(before[0], after[0]);
    // The one without environment cannot be told whose it is; it goes at the end.
    eventually("the old children are gone", || {
        before[..3]
            .iter()
            .all(|pid| tree::started(*pid).is_none())
            .then_some(())
    });
    assert!(after.iter().all(|pid| tree::started(*pid).is_some()));
}

#[test]
fn an_app_that_ignores_sigterm_is_killed_after_its_grace() {
    let (mut world, family) = World::stubborn(&[]);
    let up = world.up();
    kill(Pid::from_raw(up.pid), Signal::SIGTERM).expect("sent");
    assert_eq!(world.code(), Some(0));
    world.nothing_remains(&family, &up);
}

#[test]
fn a_second_ctrl_c_does_not_wait_for_the_grace() {
    let (mut world, family) = World::stubborn(&[(GRACE, "long")]);
    let up = world.up();
    kill(Pid::from_raw(up.pid), Signal::SIGINT).expect("sent");
    eventually("the app was asked to end", || {
        fs::read_to_string(world.layout().log("app-1"))
            .ok()
            .filter(|log| log.contains("no"))
    });
    kill(Pid::from_raw(up.pid), Signal::SIGINT).expect("sent");
    assert_eq!(world.code(), Some(0));
    world.nothing_remains(&family, &up);
}

#[test]
fn a_second_up_in_the_same_folder_names_the_first() {
    use std::io::Read;
    let world = World::start(FAMILY);
    let up = world.up();
    let mut second = start_front(world.folder.path(), &[]);
    let mut said = String::new();
    second
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut said)
        .expect("read");
    assert_eq!(second.wait().expect("waited").code(), Some(9));
    assert!(said.contains(&format!("already running (pid {})", up.pid)), "{said}");
}

#[test]
fn a_stale_description_is_cleaned_and_does_not_hinder() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("app.py"), FAMILY).expect("written");
    let layout = Layout::of(folder.path()).expect("layout");
    layout.create().expect("created");
    fs::write(layout.run.join("stale"), "").expect("written");
    let world = World {
        front: start_front(folder.path(), &[]),
        folder,
    };
    world.up();
    assert!(!layout.run.join("stale").exists());
}
