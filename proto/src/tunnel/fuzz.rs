//! What a fuzzer calls. Each function panics when something that must always hold does not.

use super::open::Read;
use super::{Acceptor, Decoder, Event, Frame, Open, Piece, Refusal, Side};

/// Decodes `data` whole and cut at every place that its first byte suggests: both must give the same
/// frames and bytes, and what an OPEN says must survive being written again.
pub fn frames(data: &[u8]) {
    let step = data.first().map_or(1, |b| usize::from(*b).max(1));
    let whole = decode(data, data.len().max(1));
    assert_eq!(whole, decode(data, step), "cuts change the meaning");
    let mut decoder = Decoder::default();
    let mut rest = data;
    while let Ok((used, piece)) = decoder.next(rest) {
        if let Piece::Frame(Frame::Open(body)) = piece
            && let Ok(Read::Whole(open)) = Open::read(body)
        {
            let mut again = Vec::new();
            open.write(&mut again);
            let Ok((_, Piece::Frame(Frame::Open(body)))) = Decoder::default().next(&again) else {
                panic!("a written OPEN is not one");
            };
            assert_eq!(Open::read(body), Ok(Read::Whole(open)));
        }
        if used == 0 {
            break;
        }
        rest = rest.get(used..).unwrap_or_default();
    }
}

/// Everything decoded with `step` new bytes at a time: frames, bytes of DATA, and whether it ended well.
fn decode(data: &[u8], step: usize) -> (Vec<u8>, bool) {
    let mut decoder = Decoder::default();
    let (mut seen, mut at, mut known) = (Vec::new(), 0, 0);
    loop {
        match decoder.next(data.get(at..known).unwrap_or_default()) {
            Err(_) => return (seen, false),
            Ok((used, piece)) => {
                at += used;
                match piece {
                    Piece::Data(bytes) => seen.extend_from_slice(bytes),
                    Piece::Frame(frame) => frame.write(&mut seen),
                    Piece::More if known == data.len() => return (seen, true),
                    Piece::More => known = (known + step).min(data.len()),
                }
            }
        }
    }
}

/// Feeds an acceptor with `data` as a hostile dialler would, its first byte deciding what the own app
/// does: no stream begins before the one before it is over, no byte reaches an app but between ACCEPT
/// and FIN, and no answer is more than a small multiple of the question.
pub fn acceptor(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else {
        return;
    };
    let (mut side, mut out) = (Acceptor::default(), Vec::new());
    let (mut open, mut ended, mut last) = (false, false, 0);
    let mut fin_sent = false;
    loop {
        let Ok((used, event)) = side.receive(rest, &mut out) else {
            return;
        };
        match event {
            Event::More if used == 0 => break,
            Event::More | Event::Asked => {}
            Event::Open(asked) => {
                assert!(!open, "a stream inside a stream");
                assert_eq!(asked.number, last + 1);
                last = asked.number;
                if choice & 1 == 0 {
                    assert_eq!(side.accept(&mut out), Ok(()));
                    (open, ended, fin_sent) = (true, false, false);
                } else {
                    assert_eq!(side.reject(Refusal::Denied, &mut out), Ok(()));
                }
            }
            Event::Rejected(_) => assert!(side.closed()),
            Event::Data(bytes) => assert!(open && !ended && !bytes.is_empty(), "bytes of no stream"),
            Event::Fin => {
                assert!(open && !ended, "a second end");
                ended = true;
                if choice & 2 == 0 {
                    assert_eq!(side.delivered(&mut out), Ok(()));
                }
            }
            Event::Accepted | Event::Unprocessed | Event::Draining | Event::Settled => panic!("not an acceptor's"),
        }
        if open && choice & 4 == 0 && !std::mem::replace(&mut fin_sent, true) {
            assert_eq!(side.fin(&mut out), Ok(()));
        }
        if choice & 8 != 0 {
            side.leave(&mut out);
        }
        open = open && side.streaming();
        rest = rest.get(used..).unwrap_or_default();
    }
    assert!(
        out.len() <= data.len() * 8 + 64,
        "{} bytes for {}",
        out.len(),
        data.len()
    );
}
