//! What a person sees: lines prefixed and coloured by service, and the supervisor's own notes.
//!
//! Until start-up is over service lines are held back, so that they do not tear progress and table apart. The colours
//! follow NO_COLOR and `--color`; both are settled once by the program's `main`.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use parking_lot::Mutex;

/// Lines held back before start-up is over; beyond that the oldest go (they are in the log file).
const HELD: usize = 500;

/// The terminal, shared by all who write to it.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    mode: Mode,
    palette: Palette,
    held: VecDeque<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Held,
    Shown,
    Silent,
}

impl Console {
    /// A console that holds service lines back until [`Console::release`].
    pub(crate) fn held() -> Self {
        Self::with(Mode::Held)
    }

    /// A console that shows everything.
    pub(crate) fn shown() -> Self {
        Self::with(Mode::Shown)
    }

    /// A console that shows no service lines, only notes.
    pub(crate) fn silent() -> Self {
        Self::with(Mode::Silent)
    }

    fn with(mode: Mode) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                mode,
                palette: Palette::default(),
                held: VecDeque::new(),
            })),
        }
    }

    /// Gives each name its colour and the prefix its width, in this order.
    pub(crate) fn introduce<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut inner = self.inner.lock();
        for name in names {
            inner.palette.style(name);
        }
    }

    /// One line of a service.
    pub(crate) fn line(&self, name: &str, text: &str) {
        let mut inner = self.inner.lock();
        match inner.mode {
            Mode::Shown => print_line(&mut inner.palette, name, text),
            Mode::Silent => {}
            Mode::Held => {
                if inner.held.len() == HELD {
                    inner.held.pop_front();
                }
                inner.held.push_back((name.to_owned(), text.to_owned()));
            }
        }
    }

    /// One line of our own. Where nobody reads (a closed pipe) the line is lost, not the program.
    pub(crate) fn say(&self, text: &str) {
        let _inner = self.inner.lock();
        let mut out = anstream::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).ok();
    }

    /// A warning or news about a process, apart from the output proper.
    pub(crate) fn note(&self, text: &str) {
        let _inner = self.inner.lock();
        let dim = Style::new().dimmed();
        let mut out = anstream::stderr().lock();
        writeln!(out, "{dim}outrigger:{dim:#} {text}")
            .and_then(|()| out.flush())
            .ok();
    }

    /// Shows what was held back and everything from now on.
    pub(crate) fn release(&self) {
        let mut inner = self.inner.lock();
        inner.mode = Mode::Shown;
        for (name, text) in std::mem::take(&mut inner.held) {
            print_line(&mut inner.palette, &name, &text);
        }
    }

    /// Shows no service lines any more.
    pub(crate) fn silence(&self) {
        let mut inner = self.inner.lock();
        inner.mode = Mode::Silent;
        inner.held.clear();
    }
}

fn print_line(palette: &mut Palette, name: &str, text: &str) {
    let (style, width) = (palette.style(name), palette.width);
    let mut out = anstream::stdout().lock();
    writeln!(out, "{style}{name:<width$} |{style:#} {text}")
        .and_then(|()| out.flush())
        .ok();
}

/// The colours, one a service: the replicas of one share it.
#[derive(Debug, Default)]
struct Palette {
    width: usize,
    services: HashMap<String, usize>,
}

impl Palette {
    fn style(&mut self, name: &str) -> Style {
        self.width = self.width.max(name.len());
        let service = name.rsplit_once('-').map_or(name, |(service, _)| service);
        let next = self.services.len();
        let index = *self.services.entry(service.to_owned()).or_insert(next);
        let colour = COLOURS.get(index % COLOURS.len()).copied().unwrap_or(AnsiColor::White);
        Style::new().fg_color(Some(colour.into()))
    }
}

const COLOURS: [AnsiColor; 10] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightYellow,
    AnsiColor::BrightGreen,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightBlue,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_share_a_colour_and_services_differ() {
        let mut palette = Palette::default();
        assert_eq!(palette.style("user-1"), palette.style("user-2"));
        assert_ne!(palette.style("user-1"), palette.style("post-1"));
        assert_eq!(palette.width, 6);
    }
}
