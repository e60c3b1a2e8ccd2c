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
use tokio::signal::unix::{SignalKind, signal};

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
        // Its panic hook restores the terminal before it says anything.
        let ended = match ratatui::try_init() {
            Ok(mut terminal) => run(&mut terminal, &plane, service, first).await,
            Err(error) => Err(error).context("the terminal cannot be drawn on"),
        };
        ratatui::restore();
        ended
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn run(
    terminal: &mut DefaultTerminal,
    plane: &Plane,
    service: Option<String>,
    mut before: Look,
) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
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
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
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
    use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

    use super::{Asked, asked};

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
