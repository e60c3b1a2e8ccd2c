//! The HTTP/2 client's side: frames in, uploads out as the windows allow.

use outrigger_bench::*;

use crate::run::{Conn, Run, FILL};

impl Run {
    pub(crate) fn h2_data(&mut self, slot: usize, data: &[u8], now: u64) {
        let c = &mut self.conns[slot];
        let owned;
        let whole: &[u8] = if c.inb.is_empty() {
            data
        } else {
            c.inb.extend_from_slice(data);
            owned = std::mem::take(&mut c.inb);
            &owned
        };
        let mut at = 0;
        let mut released = 0;
        let want = 5 + self.a.reply;
        while whole.len() - at >= 9 {
            let c = &mut self.conns[slot];
            let h = &whole[at..at + 9];
            let len = ((h[0] as usize) << 16) | ((h[1] as usize) << 8) | h[2] as usize;
            if whole.len() - at < 9 + len {
                break;
            }
            let (kind, flags, id) = (h[3], h[4], be32(&h[5..9]) & 0x7fff_ffff);
            let p = &whole[at + 9..at + 9 + len];
            at += 9 + len;
            let mut end = false;
            match kind {
                frame::DATA => {
                    c.h2.unacked += len as u32;
                    if c.h2.unacked > 1 << 18 {
                        let n = c.h2.unacked;
                        put_window_update(&mut c.out, 0, n);
                        c.h2.unacked = 0;
                    }
                    if let Some(l) = c.h2.live.get_mut(&id) {
                        let before = l.1 >> 18;
                        l.1 += len;
                        if l.1 >> 18 != before {
                            put_window_update(&mut c.out, id, 1 << 18);
                        }
                    }
                    end = flags & frame::END_STREAM != 0;
                }
                frame::HEADERS => end = flags & frame::END_STREAM != 0,
                frame::SETTINGS if flags & frame::ACK == 0 => {
                    for e in p.chunks_exact(6) {
                        let v = be32(&e[2..6]);
                        match u16::from_be_bytes([e[0], e[1]]) {
                            1 if v < 4096 => c.h2.indexing = false,
                            4 => {
                                let d = v as i64 - c.h2.init_window;
                                c.h2.init_window = v as i64;
                                for x in c.h2.pending.iter_mut() {
                                    x.2 += d;
                                }
                            }
                            _ => {}
                        }
                    }
                    put_head(&mut c.out, 0, frame::SETTINGS, frame::ACK, 0);
                    if !c.h2.ready {
                        c.h2.ready = true;
                        released = self.a.streams;
                    }
                }
                frame::PING if flags & frame::ACK == 0 => {
                    put_head(&mut c.out, 8, frame::PING, frame::ACK, 0);
                    c.out.extend_from_slice(p);
                }
                frame::WINDOW_UPDATE => {
                    let inc = (be32(p) & 0x7fff_ffff) as i64;
                    if id == 0 {
                        c.h2.conn_window += inc;
                    } else if let Some(x) = c.h2.pending.iter_mut().find(|x| x.0 == id) {
                        x.2 += inc;
                    }
                    h2_upload(c);
                }
                frame::RST_STREAM => {
                    self.errors += 1;
                    if self.errors <= 3 {
                        eprintln!("RST_STREAM {}", be32(p));
                    }
                    c.h2.pending.retain(|x| x.0 != id);
                    if c.h2.live.remove(&id).is_some() {
                        c.busy -= 1;
                        released += 1;
                    }
                }
                frame::GOAWAY => c.h2.goaway = true,
                _ => {}
            }
            if end {
                let c = &mut self.conns[slot];
                if let Some((start, got)) = c.h2.live.remove(&id) {
                    c.busy -= 1;
                    released += 1;
                    if got != want {
                        self.errors += 1;
                        if self.errors <= 3 {
                            eprintln!("stream {id}: {got} bytes, not {want}");
                        }
                    }
                    self.finish(start, now);
                }
            }
        }
        let c = &mut self.conns[slot];
        if at < whole.len() {
            let rest = whole[at..].to_vec();
            c.inb = rest;
        }
        let goaway = c.h2.goaway;
        if goaway {
            if c.busy == 0 {
                self.close(slot);
                self.open(slot);
            }
            return;
        }
        if now < self.stop_at {
            for _ in 0..released {
                if let Some(start) = self.waiting.pop_front() {
                    self.send(slot, start);
                } else if self.a.rate == 0.0 {
                    self.send(slot, now);
                }
            }
        }
        self.flush(slot);
    }
}

pub(crate) fn h2_upload(c: &mut Conn) {
    while let Some((id, left, w)) = c.h2.pending.front_mut() {
        let n = (*left as i64).min(*w).min(c.h2.conn_window).min(16384);
        if n <= 0 || c.out.len() > 1 << 18 {
            return;
        }
        *left -= n as usize;
        *w -= n;
        c.h2.conn_window -= n;
        let fin = *left == 0;
        put_head(
            &mut c.out,
            n as usize,
            frame::DATA,
            if fin { frame::END_STREAM } else { 0 },
            *id,
        );
        c.out.extend_from_slice(&FILL[..n as usize]);
        if fin {
            c.h2.pending.pop_front();
        }
    }
}
