//! Protocols whose server speaks first (SMTP, MySQL) under `outrigger up`: nobody waits for the client's first byte,
//! in whatever mode, and a client that has no certificate gets the banner only where plain connections are welcome.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outrigger_tests::client::get;
use outrigger_tests::{World, ports, runner, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(crate) fn tests() -> Vec<Trial> {
    let room = module_path!();
    ["strict", "permissive", "off"]
        .map(|mode| {
            let name = format!("the_banner_arrives_when_the_mode_is_{mode}");
            runner::scenario(room, &name, move |world| the_banner_arrives(world, mode))
        })
        .into()
}

/// Says 220, then echoes a line.
const MAIL: &str = r#"
import os, socketserver

class Mail(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 mail ready\r\n")
        self.wfile.write(b"250 " + self.rfile.readline())

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True

Server((os.environ["HOST"], int(os.environ["PORT"])), Mail).serve_forever()
"#;

/// Answers with the banner that it reads before it says anything, and with the answer to what it says then.
const READER: &str = r#"
import http.server, os, socket

class Reader(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        host, port = os.environ["MAIL_ADDR"].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=30) as mail:
            lines = mail.makefile("rb")
            text = lines.readline()
            mail.sendall(b"HELO reader\r\n")
            text += lines.readline()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    log_message = lambda *_: None

http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Reader).serve_forever()
"#;

const SAID: &str = "220 mail ready\r\n250 HELO reader\r\n";

async fn the_banner_arrives(world: Arc<World>, mode: &'static str) -> Result<()> {
    let (reader, mail) = (ports::free()?, ports::free()?);
    world.write("mail.py", MAIL)?;
    world.write("reader.py", READER)?;
    world.write(
        "mesh.yaml",
        &format!(
            "mesh: mail\n---\nservice: mail\nrun: python3 mail.py\nmode: {mode}\n\
             ports: [{{ name: smtp, protocol: tcp, port: {}, server_first: true }}]\n---\n\
             service: reader\nrun: python3 reader.py\nmode: permissive\nport: {}\nprotocol: http\ncalls: [mail]\n",
            mail.port(),
            reader.port(),
        ),
    )?;
    let mut command = world.program("outrigger")?;
    let control_plane = ports::free()?.port().to_string();
    command.args(["up", "--no-build", "--control-plane-port", &control_plane]);
    let mut up = world.spawn("up", command)?;
    wait::until("both are up", || {
        let up = up.output().contains("2 of 2 healthy");
        std::future::ready(up)
    })
    .await?;
    wait::until("the reader answers", || async {
        get(reader, "/").await.is_ok_and(|answer| answer.status() == 200)
    })
    .await?;
    let answer = get(reader, "/").await?;
    ensure!(answer.text() == SAID, "{answer:?}");
    let welcome = mode != "strict";
    // Where certificates are asked for, silence is waited for as one: it says what ends that.
    let plain = plainly(mail, if welcome { "" } else { "HELO plain\r\n" }).await?;
    ensure!((plain == "220 mail ready\r\n") == welcome, "in plain: {plain:?}");
    up.signal(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(up.wait(wait::SOON).await?.success(), "the mesh ends");
    Ok(())
}

/// What somebody without a certificate reads who says no more than `says`.
async fn plainly(at: SocketAddr, says: &str) -> Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(says.as_bytes()).await?;
    let mut text = [0; 16];
    let mut read = 0;
    wait::soon("a banner, or the end", async {
        // A refusal may be a reset.
        while read < text.len() {
            match stream.read(&mut text[read..]).await {
                Ok(0) | Err(_) => break,
                Ok(n) => read += n,
            }
        }
        Ok(())
    })
    .await?;
    Ok(String::from_utf8_lossy(&text[..read]).into_owned())
}
