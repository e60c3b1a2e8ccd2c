//! `outrigger top`: what happens in the mesh now, drawn on the terminal once a second.
//!
//! The numbers are made of two looks at the sidecars (`model`, pure) and drawn by `draw`; here is what looks and what
//! listens to the keyboard. However it ends, by a key, a signal, an error or a panic, the terminal is as it was.

mod draw;
mod model;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use crossterm::event::{Event, EventStream, KeyCode, KeyEventKind, KeyModifiers};
use futures_util::StreamExt as _;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::draw::View;
use self::model::Look;
use super::health::ask;
use crate::exit::Failure;
use crate::plane::{Plane, Target, service_name};

/// Show live what each service gets and how it answers; `q` ends it
///
/// One line for each service as its own sidecars see it (`in`), and one as the sidecars of its callers see it (`calls`, with
/// tries for each request, breaker and ejected instances). All numbers are of the last second or so. Success is the share of
/// answers that are no server errors.
#[derive(Debug, Clone, Args)]
pub(crate) struct TopArgs {
    /// Only this service, as `service` or `namespace/service`
    service: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs `top`.
pub(crate) fn top(args: &TopArgs) -> anyhow::Result<ExitCode> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        let said = "`top` draws on a terminal and there is none; `outrigger stats --watch` prints lines";
        return Err(Failure::Usage(said.to_owned()).into());
    }
    let plane = args.target.plane()?;
    let service = args
        .service
        .as_deref()
        .map(service_name)
        .transpose()?
        .map(|(namespace, name)| format!("{namespace}/{name}"));
    super::runtime()?.block_on(async {
        // What is wrong at the start is said as any command says it.
        if let Some(service) = &service {
            plane.get(&format!("/v1/services/{service}")).await?;
        }
        let first = Look::read(&ask(&plane, None, "/stats").await?);
        if anstream::ColorChoice::global() == anstream::ColorChoice::Never {
            crossterm::style::force_color_output(false);
        }
        // Before anything is drawn: whatever ends it from then on is noticed.
        let signals = Signals::new()?;
        on_terminal(async |terminal| run(terminal, signals, &plane, service, first).await).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Gives `draw` the whole terminal, and takes it back however that ends.
async fn on_terminal(draw: impl AsyncFnOnce(&mut DefaultTerminal) -> anyhow::Result<()>) -> anyhow::Result<()> {
    // Its panic hook restores the terminal before it says anything. The cursor comes back with the end of `terminal`.
    let ended = match ratatui::try_init() {
        Ok(mut terminal) => draw(&mut terminal).await,
        Err(error) => Err(error).context("the terminal cannot be drawn on"),
    };
    ratatui::restore();
    ended
}

/// What ends it from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Cancel safe.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

async fn run(
    terminal: &mut DefaultTerminal,
    mut signals: Signals,
    plane: &Plane,
    service: Option<String>,
    mut before: Look,
) -> anyhow::Result<()> {
    let mut keys = EventStream::new();
    let mut view = View {
        sidecars: before.sidecars(),
        unreachable: before.unreachable.clone(),
        only: service,
        ..View::default()
    };
    let mut next = Box::pin(later(plane));
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut view))?;
        // Whatever is not ready keeps its progress: the stream and the look live outside of the loop.
        tokio::select! {
            () = signals.any() => return Ok(()),
            key = keys.next() => match asked(&key.context("the keyboard is gone")??) {
                Asked::End => return Ok(()),
                Asked::Scroll(by) => view.scroll(by),
                Asked::Nothing => {}
            },
            looked = &mut next => {
                next = Box::pin(later(plane));
                match looked {
                    Ok(now) => {
                        view.show(&before, &now);
                        before = now;
                    }
                    // It may come back; what was seen last stays until then.
                    Err(error) => view.trouble = Some(format!("{error:#}")),
                }
            }
        }
    }
}

/// A look at all sidecars, a while from now.
async fn later(plane: &Plane) -> anyhow::Result<Look> {
    tokio::time::sleep(PERIOD).await;
    Ok(Look::read(&ask(plane, None, "/stats").await?))
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    End,
    /// So many lines down.
    Scroll(i32),
    Nothing,
}

fn asked(event: &Event) -> Asked {
    let Event::Key(key) = event else { return Asked::Nothing };
    if key.kind == KeyEventKind::Release {
        return Asked::Nothing;
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Asked::End,
        // Raw terminals make no signal of it.
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Asked::End,
        KeyCode::Down | KeyCode::Char('j') => Asked::Scroll(1),
        KeyCode::Up | KeyCode::Char('k') => Asked::Scroll(-1),
        KeyCode::PageDown => Asked::Scroll(10),
        KeyCode::PageUp => Asked::Scroll(-10),
        _ => Asked::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

    use super::{Asked, asked, on_terminal};

    /// Says to this test, run again on a terminal, how it is to end.
    const HOW: &str = "OUTRIGGER_TEST_TOP_ENDS";
    const NAME: &str = "commands::top::tests::the_terminal_is_restored_after_an_error_and_a_panic";

    #[test]
    fn the_terminal_is_restored_after_an_error_and_a_panic() {
        if let Ok(how) = std::env::var(HOW) {
            return ends(&how);
        }
        for (how, code) in [("error", 0), ("panic", 101)] {
            let output = Command::new("python3")
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/terminal.py"))
                .args(["drawn", "key:x", "--"])
                .arg(std::env::current_exe().expect("this test"))
                .args(["--exact", NAME])
                .arg("--nocapture")
                .env(HOW, how)
                .output()
                .expect("python3");
            let (said, error) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            let well = format!("code {code} steps left 0 was raw screen left cursor shown modes restored");
            assert_eq!(said.trim(), well, "{how}: {error}");
            // What it has to say is on the screen that stays.
            assert!(error.contains("a reason"), "{how}: {error}");
        }
    }

    fn ends(how: &str) {
        let runtime = crate::commands::runtime().expect("a runtime");
        let ended = runtime.block_on(on_terminal(async |terminal| {
            terminal.draw(|frame| frame.render_widget("drawn", frame.area()))?;
            // A key, so that the terminal is looked at while it is drawn on.
            crossterm::event::read()?;
            assert!(how != "panic", "a reason");
            anyhow::bail!("a reason")
        }));
        assert_eq!(ended.map_err(|error| eprintln!("{error}")), Err(()));
    }

    #[test]
    fn keys_end_it_or_scroll() {
        let key = |code, modifiers| asked(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Asked::End);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Asked::End);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Asked::Nothing);
        assert_eq!(key(KeyCode::Up, KeyModifiers::NONE), Asked::Scroll(-1));
        assert_eq!(asked(&Event::Resize(1, 1)), Asked::Nothing);
    }
}
