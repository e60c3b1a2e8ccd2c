//! How `top` looks. Decides nothing about numbers but how they are rounded.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState};

use super::model::{self, Look, Row, Side};

/// What is on the screen.
#[derive(Debug, Default)]
pub(super) struct View {
    /// None before the second look.
    pub(super) rows: Option<Vec<Row>>,
    /// Sidecars that answered.
    pub(super) sidecars: usize,
    /// Those that did not.
    pub(super) unreachable: Vec<String>,
    /// Only this service.
    pub(super) only: Option<String>,
    /// Why the numbers are old.
    pub(super) trouble: Option<String>,
    /// Lines above the first that is shown.
    pub(super) first: usize,
}

impl View {
    /// Takes what lies between two looks.
    pub(super) fn show(&mut self, before: &Look, now: &Look) {
        let mut rows = model::rows(before, now);
        rows.retain(|row| self.only.as_ref().is_none_or(|only| *only == row.service));
        self.rows = Some(rows);
        self.sidecars = now.sidecars();
        self.unreachable.clone_from(&now.unreachable);
        self.trouble = None;
    }

    /// Goes `by` lines down.
    pub(super) fn scroll(&mut self, by: i32) {
        let by_lines = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
        self.first = match by.is_negative() {
            true => self.first.saturating_sub(by_lines),
            false => self.first.saturating_add(by_lines),
        };
    }
}

const HEADER: [&str; 10] = [
    "SERVICE", "SEEN", "RPS", "SUCCESS", "P50 MS", "P95 MS", "P99 MS", "TRIES", "BREAKER", "EJECTED",
];

/// Draws it.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    let rows = view.rows.as_deref().unwrap_or_default();
    // The header takes one line.
    let fits = usize::from(body.height.saturating_sub(1));
    view.first = view.first.min(rows.len().saturating_sub(fits));
    frame.render_widget(Paragraph::new(title(view)), head);
    let longest = rows
        .iter()
        .map(|row| row.service.chars().count())
        .max()
        .unwrap_or_default();
    let service = u16::try_from(longest.clamp(7, 40)).unwrap_or(40);
    // On 80 columns a name of two short words is whole; what is ejected gives way first.
    let widths = [service, 5, 6, 7, 6, 6, 6, 5, 11].map(Constraint::Length);
    let widths = widths.into_iter().chain([Constraint::Fill(1)]);
    let header = TableRow::new(HEADER).style(Style::new().add_modifier(Modifier::BOLD));
    let table = Table::new(rows.iter().map(line), widths)
        .header(header)
        .column_spacing(1);
    let mut state = TableState::new().with_offset(view.first);
    frame.render_stateful_widget(table, body, &mut state);
    frame.render_widget(Paragraph::new("q quit  ↑↓ scroll".dim()), foot);
}

fn title(view: &View) -> Vec<Line<'static>> {
    let answers = format!("outrigger top: {} sidecars answer", view.sidecars);
    let silent = match view.unreachable.as_slice() {
        [] => String::new(),
        silent => format!("; {} do not: {}", silent.len(), silent.join(", ")),
    };
    let state = match (&view.trouble, &view.rows) {
        (Some(trouble), _) => Line::from(format!("these are old: {trouble}")).fg(Color::Red),
        (None, None) => Line::from("looking"),
        (None, Some(rows)) if rows.is_empty() => Line::from("no service was used yet"),
        (None, Some(_)) => Line::default(),
    };
    let answers = Line::from(answers + &silent);
    let answers = if view.unreachable.is_empty() {
        answers
    } else {
        answers.fg(Color::Yellow)
    };
    vec![answers, state]
}

fn line(row: &Row) -> TableRow<'static> {
    let ms = |i: usize| match row.latency.and_then(|all| all.get(i).copied()) {
        Some(ms) => decimal(ms),
        None => "-".to_owned(),
    };
    let side = match row.side {
        Side::In => "in",
        Side::Calls => "calls",
    };
    let of = row.callers;
    let (breaker, colour) = match (row.open, row.probing) {
        (0, 0) if row.side == Side::In => ("-".to_owned(), None),
        (0, 0) => ("closed".to_owned(), None),
        (0, probing) => (format!("probing {probing}/{of}"), Some(Color::Yellow)),
        (open, _) => (format!("open {open}/{of}"), Some(Color::Red)),
    };
    // The service is named at the beginning of the line.
    let names: Vec<&str> = row
        .ejected
        .iter()
        .map(|name| name.rsplit('/').next().unwrap_or(name))
        .collect();
    let ejected = if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(", ")
    };
    let failing = row.success.is_some_and(|share| share < 0.99);
    let coloured = |text: String, colour: Option<Color>| match colour {
        Some(colour) => Cell::from(text).fg(colour),
        None => Cell::from(text),
    };
    TableRow::new([
        Cell::from(row.service.clone()),
        Cell::from(side),
        Cell::from(decimal(row.rps)),
        coloured(
            row.success.map_or_else(|| "-".to_owned(), percent),
            failing.then_some(Color::Red),
        ),
        Cell::from(ms(0)),
        Cell::from(ms(1)),
        Cell::from(ms(2)),
        Cell::from(row.tries.map_or_else(|| "-".to_owned(), |tries| format!("{tries:.2}"))),
        coloured(breaker, colour),
        coloured(ejected, (!names.is_empty()).then_some(Color::Yellow)),
    ])
}

/// Rounded down: 100% means all.
fn percent(share: f64) -> String {
    let hundredths = (share * 10_000.0 + 1e-6).floor() / 100.0;
    if hundredths >= 100.0 {
        "100%".to_owned()
    } else {
        format!("{hundredths:.2}%")
    }
}

fn decimal(number: f64) -> String {
    if number < 99.95 {
        format!("{number:.1}")
    } else {
        format!("{number:.0}")
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::super::model::{Look, tests::web};
    use super::{View, decimal, draw, percent};

    fn drawn(view: &mut View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen() {
        let mut view = View::default();
        let first = drawn(&mut view, 100, 4);
        let before = Look::read(&[web(10_000, 1000, 100, "closed", &[])]);
        let silent = json!({ "service": "default/post", "instance": "p1", "status": "unreachable" });
        let now = Look::read(&[
            web(12_000, 1200, 120, "open", &["default/user/u1", "default/user/u2"]),
            silent,
        ]);
        view.show(&before, &now);
        let full = drawn(&mut view, 100, 6);
        view.scroll(10);
        let scrolled = drawn(&mut view, 100, 5);
        view.trouble = Some("cannot reach the control plane".into());
        view.scroll(-10);
        let narrow = drawn(&mut view, 80, 6);
        insta::assert_snapshot!([first, full, scrolled, narrow].join("\n"));
    }

    #[test]
    fn numbers_never_look_better_than_they_are() {
        assert_eq!(
            [1.0, 0.99999, 0.9, 0.0].map(percent),
            ["100%", "99.99%", "90.00%", "0.00%"]
        );
        assert_eq!(
            [0.04, 99.94, 99.96, 12345.6].map(decimal),
            ["0.0", "99.9", "100", "12346"]
        );
    }
}
