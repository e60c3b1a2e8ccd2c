//! A line between two programs that can go dead: nothing arrives any more, nobody is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context as _, Result};
use socket2::{SockFilter, SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A forwarder of TCP connections in the test's own process.
#[derive(Debug)]
pub struct Line {
    /// Where it listens.
    pub addr: SocketAddr,
    upstream: Arc<OnceLock<SocketAddr>>,
    sockets: Arc<Mutex<Vec<Socket>>>,
    task: AbortHandle,
}

impl Line {
    /// A line whose far end is told later.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let upstream = Arc::new(OnceLock::new());
        let sockets = Arc::new(Mutex::new(vec![SockRef::from(&listener).try_clone()?]));
        let (far, kept) = (Arc::clone(&upstream), Arc::clone(&sockets));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let Some(far) = far.get().copied() else { continue };
                let kept = Arc::clone(&kept);
                connections.spawn(async move {
                    let _ended: Result<()> = carry(near, far, &kept).await;
                });
            }
        });
        Ok(Self {
            addr,
            upstream,
            sockets,
            task: task.abort_handle(),
        })
    }

    /// Tells the far end, once.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.upstream.get_or_init(|| upstream);
    }

    /// From now on every packet to this line is dropped by the kernel: no byte is acknowledged, no connection is
    /// taken, no FIN and no RST is sent. So a machine behaves that lost its power, or its network.
    ///
    /// # Errors
    /// When the kernel does not take the filter.
    pub fn go_dead(&self) -> Result<()> {
        let sockets = self.sockets.lock().ok().context("a poisoned lock")?;
        for socket in sockets.iter() {
            // One that has ended already is dead as well.
            socket.attach_filter(&[SockFilter::new(DROP, 0, 0, 0)]).ok();
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut near: TcpStream, far: SocketAddr, kept: &Mutex<Vec<Socket>>) -> Result<()> {
    let mut far = TcpStream::connect(far).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let both = [SockRef::from(&near).try_clone()?, SockRef::from(&far).try_clone()?];
    kept.lock().ok().context("a poisoned lock")?.extend(both);
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

/// The instruction of a packet filter that takes no byte of anything (`BPF_RET | BPF_K`, linux/filter.h).
const DROP: u16 = 0x06;
