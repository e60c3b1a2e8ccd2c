//! Listening sockets that somebody else opened: whoever hands the same ones to the next sidecar loses no connection
//! between the two, because a socket's queue lives as long as one of them holds it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::AsFd;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// More sockets than this in one message are not taken.
const MOST: usize = 64;

/// Takes the sockets of the one message that waits on `from`, a unix socket.
///
/// # Errors
/// When there is none, or `from` is no such socket.
pub fn handed(from: impl AsFd) -> io::Result<Vec<TcpListener>> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("handed listeners: {error}"));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // Sent before we were started: not there means that nobody ever sends it.
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut rights, flags).map_err(|e| explain(e.into()))?;
    let mut listeners = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            listeners.extend(sockets.map(TcpListener::from));
        }
    }
    for listener in &listeners {
        listener.set_nonblocking(true).map_err(explain)?;
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[test]
    fn a_connection_waits_in_the_queue_for_whom_the_socket_is_handed_to() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let sockets = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        assert!(rights.push(SendAncillaryMessage::ScmRights(&sockets)));
        sendmsg(&ours, &[IoSlice::new(b".")], &mut rights, SendFlags::empty()).unwrap();
        drop((ours, socket));
        let [taken] = &handed(theirs).unwrap()[..] else {
            panic!("not one socket");
        };
        assert_eq!(taken.local_addr().unwrap(), address);
        assert!(taken.accept().is_ok());
    }

    #[test]
    fn nothing_sent_is_an_error_and_not_a_wait() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        assert!(handed(theirs).is_err());
    }
}
