//! The protocol on its own: every frame, every cut, both machines against each other.

use proptest::prelude::*;

use super::open::Read;
use super::*;

fn open() -> Open {
    Open {
        number: 0,
        service: "default/post".parse().expect("a name"),
        port: "pg".into(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        source: Some("[::1]:4711".parse().expect("an address")),
    }
}

/// The byte that every byte of stream `number` is, in the direction from the dialler or to it.
fn mark(number: u32, to_dialler: bool) -> u8 {
    (number % 100) as u8 * 2 + u8::from(to_dialler)
}

/// One side with its input, its output and its app.
struct End<S> {
    side: S,
    input: Vec<u8>,
    out: Vec<u8>,
    /// Stream whose bytes may reach the app now.
    stream: u32,
    app_got: u64,
    app_sent: u64,
    fin_sent: bool,
    fin_received: bool,
    delivered: bool,
    asked: bool,
    over: bool,
    /// Its app takes everything at once and ends its own direction at once.
    eager: bool,
    well: u32,
}

impl<S: Side> End<S> {
    fn new(side: S) -> Self {
        Self {
            side,
            input: Vec::new(),
            out: Vec::new(),
            stream: 0,
            app_got: 0,
            app_sent: 0,
            fin_sent: true,
            fin_received: true,
            delivered: true,
            asked: false,
            over: false,
            eager: false,
            well: 0,
        }
    }

    fn begin(&mut self, stream: u32) {
        assert!(self.fin_sent && self.fin_received && self.delivered, "reused too early");
        self.stream = stream;
        (self.app_got, self.app_sent) = (0, 0);
        (self.fin_sent, self.fin_received, self.delivered) = (false, false, false);
    }

    /// Takes in `n` bytes and looks at all that can be looked at.
    fn take(&mut self, from: &mut Vec<u8>, n: usize, to_dialler: bool) -> Result<(), Violation> {
        let n = n.min(from.len());
        self.input.extend(from.drain(..n));
        loop {
            let input = std::mem::take(&mut self.input);
            let (used, event) = self.side.receive(&input, &mut self.out)?;
            let more = event == Event::More;
            match event {
                Event::Data(bytes) => {
                    assert!(!self.fin_received, "bytes after the end");
                    let expected = mark(self.stream, to_dialler);
                    // A dialler that breaks the rules mixes its own bytes; what counts then is how it ends.
                    assert!(
                        self.eager || bytes.iter().all(|b| *b == expected),
                        "a byte of another stream"
                    );
                    self.app_got += bytes.len() as u64;
                }
                Event::Fin => {
                    self.fin_received = true;
                    if self.eager {
                        self.well += 1;
                        self.end();
                        self.deliver();
                    }
                }
                Event::Open(open) => {
                    self.begin(open.number);
                    self.asked = true;
                }
                Event::Rejected(_) | Event::Unprocessed | Event::Draining => self.over = true,
                Event::More | Event::Accepted | Event::Settled | Event::Asked => {}
            }
            self.input = input[used..].to_vec();
            if more && used == 0 {
                return Ok(());
            }
        }
    }

    fn send(&mut self, n: usize, to_dialler: bool) {
        let n = n.min(usize::try_from(self.side.may_send()).unwrap_or(usize::MAX));
        if n == 0 || self.fin_sent {
            return;
        }
        self.out.extend(self.side.data(n).expect("may send"));
        self.out.extend(vec![mark(self.stream, to_dialler); n]);
        self.app_sent += n as u64;
    }

    fn end(&mut self) {
        if self.side.streaming() && !self.fin_sent && self.side.fin(&mut self.out).is_ok() {
            self.fin_sent = true;
        }
    }

    fn deliver(&mut self) {
        if self.fin_received && !self.delivered {
            self.side.delivered(&mut self.out).expect("FIN was received");
            self.delivered = true;
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Open,
    Ask,
    Send(bool, u16),
    End(bool),
    Deliver(bool),
    Accept,
    Reject,
    Drain,
    Move(bool, u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Open),
        1 => Just(Act::Ask),
        8 => (any::<bool>(), 1u16..3000).prop_map(|(s, n)| Act::Send(s, n)),
        2 => (any::<bool>(), 16_000u16..=16_380).prop_map(|(s, n)| Act::Send(s, n)),
        6 => any::<bool>().prop_map(Act::End),
        6 => any::<bool>().prop_map(Act::Deliver),
        6 => Just(Act::Accept),
        1 => Just(Act::Drain),
        1 => Just(Act::Reject),
        16 => (any::<bool>(), prop_oneof![1u16..40, 1u16..20_000]).prop_map(|(s, n)| Act::Move(s, n)),
    ]
}

/// Both machines against each other.
struct World {
    d: End<Dialler>,
    a: End<Acceptor>,
    streams: u32,
}

impl World {
    fn new() -> Self {
        Self {
            d: End::new(Dialler::default()),
            a: End::new(Acceptor::default()),
            streams: 0,
        }
    }

    fn act(&mut self, act: Act) -> Result<(), Violation> {
        match act {
            Act::Open => {
                if self.d.side.ready() && self.d.input.is_empty() {
                    let number = self.d.side.open(open(), &mut self.d.out)?;
                    self.d.begin(number);
                    self.streams = number;
                }
            }
            Act::Ask => {
                if self.d.side.ready() {
                    self.d.side.ask(&mut self.d.out)?;
                }
            }
            Act::Send(true, n) => self.d.send(usize::from(n), false),
            Act::Send(false, n) => self.a.send(usize::from(n), true),
            Act::End(true) => self.d.end(),
            Act::End(false) => self.a.end(),
            Act::Deliver(true) => self.d.deliver(),
            Act::Deliver(false) => self.a.deliver(),
            Act::Accept => {
                if std::mem::take(&mut self.a.asked) {
                    self.a.side.accept(&mut self.a.out)?;
                }
            }
            Act::Reject => {
                if std::mem::take(&mut self.a.asked) {
                    self.a.side.reject(Refusal::Denied, &mut self.a.out)?;
                    self.a.over = true;
                }
            }
            Act::Drain => {
                self.a.side.leave(&mut self.a.out);
            }
            Act::Move(true, n) => self.a.take(&mut self.d.out, usize::from(n), false)?,
            Act::Move(false, n) => self.d.take(&mut self.a.out, usize::from(n), true)?,
        }
        Ok(())
    }

    /// Lets everything come to its end.
    fn settle(&mut self) -> Result<(), Violation> {
        for _ in 0..8 {
            self.act(Act::Accept)?;
            for side in [true, false] {
                self.act(Act::End(side))?;
                self.act(Act::Deliver(side))?;
            }
            self.a.take(&mut self.d.out, usize::MAX, false)?;
            self.d.take(&mut self.a.out, usize::MAX, true)?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// No byte of one stream in another, no violation between two sides that keep the rules, and at
    /// the end both are between streams or closed, under any schedule and any cuts.
    #[test]
    fn two_sides_agree_under_any_schedule(acts in proptest::collection::vec(act(), 0..200)) {
        let mut world = World::new();
        for act in acts {
            world.act(act).map_err(|e| TestCaseError::fail(format!("{act:?}: {e}")))?;
        }
        world.settle().map_err(|e| TestCaseError::fail(e.to_string()))?;
        let World { d, a, .. } = world;
        if !d.over && !a.over {
            prop_assert!(d.side.ready() && !a.side.streaming());
            prop_assert_eq!(d.app_got, a.app_sent);
            prop_assert_eq!(a.app_got, d.app_sent);
            prop_assert!(d.input.is_empty() && a.input.is_empty());
        }
        prop_assert!(!d.side.streaming() && d.side.may_end() && a.side.may_end());
    }

    #[test]
    fn hostile_bytes_never_break_an_invariant(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz::frames(&bytes);
        fuzz::acceptor(&bytes);
    }

    /// Bytes that are nearly right get further than random ones.
    #[test]
    fn a_damaged_transcript_never_breaks_an_invariant(
        choice in any::<u8>(), at in 0usize..200, byte in any::<u8>(), cut in any::<bool>()
    ) {
        let mut bytes = transcript().concat();
        let at = at % bytes.len();
        match cut {
            true => drop(bytes.remove(at)),
            false => bytes[at] = byte,
        }
        bytes.insert(0, choice);
        fuzz::frames(&bytes);
        fuzz::acceptor(&bytes);
    }
}

/// A dialler's two streams, frame by frame.
fn transcript() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for number in 1..=2u32 {
        let mut bytes = Vec::new();
        Open { number, ..open() }.write(&mut bytes);
        frames.push(bytes);
        for length in [3, 5] {
            let mut bytes = put_data_header(length).to_vec();
            bytes.extend(vec![mark(number, false); length]);
            frames.push(bytes);
        }
        let mut bytes = Vec::new();
        Frame::Fin(number, 8).write(&mut bytes);
        frames.push(bytes);
    }
    frames
}

/// Plays frames against an acceptor whose app takes all and ends at once; how many streams ended well.
fn play(bytes: &[u8], step: usize) -> Result<u32, Violation> {
    let mut a = End::new(Acceptor::default());
    a.eager = true;
    for piece in bytes.chunks(step.max(1)) {
        a.take(&mut piece.to_vec(), usize::MAX, false)?;
        if std::mem::take(&mut a.asked) {
            a.side.accept(&mut a.out)?;
            a.take(&mut Vec::new(), 0, false)?;
        }
        if std::mem::take(&mut a.asked) {
            a.side.accept(&mut a.out)?;
            a.take(&mut Vec::new(), 0, false)?;
        }
    }
    Ok(a.well)
}

#[test]
fn cuts_at_every_byte_change_nothing() {
    let bytes = transcript().concat();
    for step in 1..=bytes.len() {
        assert_eq!(play(&bytes, step), Ok(2), "step {step}");
    }
}

#[test]
fn a_frame_missing_doubled_or_out_of_order_is_never_a_clean_stream() {
    let frames = transcript();
    let broken = |frames: &[Vec<u8>], what: &str| {
        let bytes = frames.concat();
        for step in [1, 7, bytes.len()] {
            let well = play(&bytes, step);
            assert!(!matches!(well, Ok(2)), "{what}: {well:?}");
        }
    };
    for i in 0..frames.len() {
        let mut missing = frames.clone();
        missing.remove(i);
        broken(&missing, &format!("frame {i} missing"));
        let mut twice = frames.clone();
        twice.insert(i, frames[i].clone());
        // An extra OPEN, DATA or FIN at the very end has no stream to harm, and is a violation too.
        broken(&twice, &format!("frame {i} twice"));
        for j in 0..i {
            // DATA carries no number: where it stands says whose it is.
            if matches!((i % 4, j % 4), (1 | 2, 1 | 2)) {
                continue;
            }
            let mut swapped = frames.clone();
            swapped.swap(i, j);
            broken(&swapped, &format!("frames {j} and {i} swapped"));
        }
    }
}

#[test]
fn only_legal_lengths_are_frames() {
    for kind in 0..=255u8 {
        for length in [0u32, 1, 3, 4, 5, 11, 12, 13, 1024, 1025, 16_380, 16_381, 0xff_ffff] {
            let [_, a, b, c] = length.to_be_bytes();
            let legal = match kind {
                1 => (1..=1024).contains(&length),
                2 | 6 | 7 => length == 4,
                3 => length == 5,
                4 => (1..=16_380).contains(&length),
                5 => length == 12,
                _ => false,
            };
            let bytes = [kind, a, b, c];
            let decoded = Decoder::default().next(&bytes);
            assert_eq!(decoded.is_ok(), legal, "type {kind}, length {length}");
        }
    }
    assert_eq!(HEADER + MAX_DATA, 16_384);
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, 0, u8::try_from(value.len()).expect("short")];
    out.extend_from_slice(value);
    out
}

#[test]
fn an_open_says_names_and_nothing_else_that_is_obeyed() {
    let whole = [tlv(0x81, &[0, 0, 0, 1]), tlv(0x82, b"default/post"), tlv(0x83, b"pg")].concat();
    let expected = Open {
        number: 1,
        traceparent: None,
        source: None,
        ..open()
    };
    assert_eq!(Open::read(&whole), Ok(Read::Whole(expected.clone())));
    // What is unknown and not critical, and what is only for logs and wrong, changes nothing.
    for extra in [tlv(0x7f, b"x"), tlv(6, b""), tlv(4, b"nonsense"), tlv(5, b"127.0.0.1")] {
        assert_eq!(
            Open::read(&[whole.clone(), extra].concat()),
            Ok(Read::Whole(expected.clone()))
        );
    }
    for extra in [tlv(0x84, b"x"), tlv(0xff, b""), tlv(0x80, b"127.0.0.1:22")] {
        assert_eq!(Open::read(&[whole.clone(), extra].concat()), Ok(Read::Unsupported(1)));
    }
    for wrong in [
        vec![],
        whole[..whole.len() - 1].to_vec(),
        [whole.clone(), vec![0x7f]].concat(),
        [whole.clone(), tlv(0x83, b"pg")].concat(),
        [tlv(0x82, b"default/post"), tlv(0x83, b"pg")].concat(),
        [tlv(0x81, &[0, 0, 0, 1]), tlv(0x83, b"pg")].concat(),
        [tlv(0x81, &[0, 0, 0, 1]), tlv(0x82, b"default/post")].concat(),
        [tlv(0x81, &[0, 1]), tlv(0x82, b"default/post"), tlv(0x83, b"pg")].concat(),
        [tlv(0x81, &[0, 0, 0, 1]), tlv(0x82, b"post"), tlv(0x83, b"pg")].concat(),
        [
            tlv(0x81, &[0, 0, 0, 1]),
            tlv(0x82, b"a/b"),
            tlv(0x83, b"127.0.0.1:5432"),
        ]
        .concat(),
    ] {
        assert!(matches!(Open::read(&wrong), Err(Violation::Open(_))), "{wrong:?}");
    }
}

#[test]
fn an_unknown_critical_part_is_refused_and_the_dialler_hears_why() {
    let mut body = [tlv(0x81, &[0, 0, 0, 1]), tlv(0xc0, b"x")].concat();
    let mut bytes = Vec::new();
    Frame::Open(&body).write(&mut bytes);
    let (mut side, mut out) = (Acceptor::default(), Vec::new());
    let (_, event) = side.receive(&bytes, &mut out).expect("well formed");
    assert_eq!(event, Event::Rejected(Refusal::Unsupported));
    assert!(side.closed());
    let mut dialler = Dialler::default();
    dialler.open(open(), &mut Vec::new()).expect("ready");
    let (_, event) = dialler.receive(&out, &mut body).expect("the rules");
    assert_eq!(event, Event::Rejected(Refusal::Unsupported));
    assert!(!dialler.ready());
}

#[test]
fn an_open_that_crossed_a_drain_was_never_looked_at() {
    let mut world = World::new();
    world.act(Act::Drain).expect("may leave");
    world.act(Act::Open).expect("does not know yet");
    world.act(Act::Send(true, 10)).expect("early");
    world.d.take(&mut world.a.out, usize::MAX, true).expect("the rules");
    assert!(world.d.over && !world.d.side.streaming());
    world
        .a
        .take(&mut world.d.out, usize::MAX, false)
        .expect("not looked at");
    assert_eq!((world.a.app_got, world.a.asked), (0, false));
}

#[test]
fn early_data_has_an_end() {
    let (mut side, mut out) = (Dialler::default(), Vec::new());
    side.open(open(), &mut out).expect("ready");
    let mut sent = 0;
    while side.may_send() > 0 {
        let n = side.may_send().min(MAX_DATA as u64);
        side.data(usize::try_from(n).expect("small")).expect("may send");
        sent += n;
    }
    assert_eq!(sent, EARLY);
    assert!(side.data(1).is_err());
}

#[test]
fn an_acceptor_is_settled_only_when_its_app_has_everything() {
    let mut world = World::new();
    world.act(Act::Open).expect("ready");
    world.act(Act::Send(true, 100)).expect("early");
    world.act(Act::End(true)).expect("early");
    world.act(Act::Move(true, u16::MAX)).expect("the rules");
    world.act(Act::Accept).expect("asked");
    world.act(Act::Move(true, 0)).expect("the rules");
    world.act(Act::End(false)).expect("open");
    world.act(Act::Move(false, u16::MAX)).expect("the rules");
    world.act(Act::Deliver(true)).expect("has FIN");
    // The app over there has not taken its bytes: a second stream would wait behind the first.
    assert!(!world.d.side.ready());
    assert_eq!(world.d.side.waits(), Wait::Settled);
    world.act(Act::Deliver(false)).expect("has FIN");
    world.act(Act::Move(false, u16::MAX)).expect("the rules");
    assert!(world.d.side.ready());
}

#[test]
fn questions_between_streams_are_answered_and_have_an_end() {
    let mut world = World::new();
    for _ in 0..MOST_QUESTIONS {
        world.act(Act::Ask).expect("ready");
        assert!(!world.d.side.ready(), "reused before the answer");
        world.act(Act::Move(true, u16::MAX)).expect("the rules");
        world.act(Act::Move(false, u16::MAX)).expect("the rules");
        assert!(world.d.side.ready());
    }
    world.act(Act::Ask).expect("ready");
    assert_eq!(world.act(Act::Move(true, u16::MAX)), Err(Violation::Unexpected("PING")));
}

#[test]
fn waits_have_an_end_and_bytes_give_a_half_closed_stream_its_time_again() {
    use std::time::{Duration, Instant};
    let start = Instant::now();
    let at = |s| start + Duration::from_secs(s);
    let mut clock = Clock::new(Limits::ACCEPTOR);
    assert_eq!(clock.look(Wait::Stream, 0, at(0)), Ok(Some(at(60))));
    assert_eq!(clock.look(Wait::Stream, 0, at(59)), Ok(Some(at(60))));
    assert_eq!(clock.look(Wait::Nothing, 0, at(60)), Ok(None));
    assert_eq!(clock.look(Wait::Nothing, 0, at(100_000)), Ok(None));
    assert_eq!(clock.look(Wait::OtherHalf, 5, at(0)), Ok(Some(at(3600))));
    assert_eq!(clock.look(Wait::OtherHalf, 6, at(3600)), Ok(Some(at(7200))));
    assert_eq!(clock.look(Wait::OtherHalf, 6, at(7200)), Err(Late(Wait::OtherHalf)));
    assert!(Limits::DIALLER.idle < Limits::ACCEPTOR.idle);
}
