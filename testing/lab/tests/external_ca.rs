//! An authority of somebody else's issues the swarm's certificates, by cfssl's protocol over HTTPS.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use shoal_identity::authority::RootAuthority;
use shoal_identity::roots::supplied;
use shoal_identity::tls::provider;
use shoal_lab::{Cluster, DaemonOptions, Host, eventually, import_shoal};
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;

const SOON: Duration = Duration::from_secs(60);
/// Where the authority's process is told where its files are, and where to listen.
const CHILD: (&str, &str) = ("SHOAL_LAB_CA_DIR", "SHOAL_LAB_CA_LISTEN");
/// How long its certificates last.
const VALIDITY: Duration = Duration::from_secs(12);

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_secs(since.as_secs().try_into().unwrap())
}

/// What is answered to a request for a certificate, in the way that the file `mode` names.
fn answer(dir: &Path, asked: &Value) -> String {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mode = read("mode");
    let (_, other) = RootAuthority::create(now()).unwrap();
    let root = match mode.as_str() {
        "garbage" => return "<html>hello</html>".to_owned(),
        "refuse" => {
            let errors = [json!({ "code": 1, "message": "the policy says no" })];
            return json!({ "success": false, "errors": errors }).to_string();
        }
        "other root" => other,
        _ => supplied(&read("root.pem"), &read("root.key"), now()).unwrap(),
    };
    let names = &asked["subject"]["names"][0];
    let manages = names["OU"] == "swarm-manager";
    let role = if manages { NodeRole::Manager } else { NodeRole::Worker };
    let id = match mode.as_str() {
        "other subject" => NodeId::new("somebody-else"),
        _ => NodeId::new(text(&asked["subject"]["CN"])),
    };
    let (cluster, csr) = (ClusterId::new(text(&names["O"])), text(&asked["certificate_request"]));
    let authority = RootAuthority::load(&root).unwrap();
    let issued = authority.issue(&csr, &id, role, &cluster, now(), VALIDITY).unwrap();
    json!({ "success": true, "result": { "certificate": issued }, "errors": [] }).to_string()
}

/// One request on one connection.
fn serve(dir: &Path, mut stream: impl Read + Write) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let body = loop {
        let count = stream.read(&mut piece).unwrap_or(0);
        if count == 0 {
            return;
        }
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
        });
        if body.len() >= length.unwrap().unwrap() {
            break body.to_owned();
        }
    };
    if std::fs::read_to_string(dir.join("mode")).unwrap() == "slow" {
        // Until whoever asked has hung up.
        while stream.read(&mut piece).is_ok_and(|count| count > 0) {}
        return;
    }
    // Only whoever looks whether this listens says something else.
    let Ok(asked) = serde_json::from_str(&body) else { return };
    let said = answer(dir, &asked);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close", said.len());
    // Ignored because: whoever asked may have hung up.
    let _ = stream.write_all(format!("{head}\r\n\r\n{said}").as_bytes());
    let _ = stream.flush();
}

/// Not a test by itself: the authority's process.
#[test]
fn child_issues_until_killed() {
    let Some(dir) = std::env::var_os(CHILD.0) else { return };
    let dir = PathBuf::from(dir);
    let listener = TcpListener::bind(std::env::var(CHILD.1).unwrap()).unwrap();
    let certs = CertificateDer::pem_file_iter(dir.join("tls.pem")).unwrap();
    let certs = certs.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("tls.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    let config = Arc::new(config);
    println!("\nlistens");
    for stream in listener.incoming() {
        let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let (dir, stream) = (dir.clone(), rustls::StreamOwned::new(tls, stream.unwrap()));
        std::thread::spawn(move || serve(&dir, stream));
    }
}

/// The authority on a host of its own.
struct Authority {
    dir: PathBuf,
    address: String,
    child: Option<Child>,
}

impl Authority {
    /// Makes its keys: as operators do, with openssl.
    fn new(host: &Host) -> Self {
        let dir = host.dir().join("ca");
        std::fs::create_dir_all(&dir).unwrap();
        let address = format!("{}:8443", host.address());
        std::fs::write(dir.join("san"), format!("subjectAltName=IP:{}", host.address())).unwrap();
        let key = |name| format!("openssl ecparam -name prime256v1 -genkey -noout -out {name}.key");
        host.sh(&format!(
            "cd {} && {} && {} && openssl req -x509 -new -key root.key -subj '/CN=Example Root' \
             -days 3650 -out root.pem && openssl req -new -key tls.key -subj '/CN=ca' -out tls.csr \
             && openssl pkcs8 -topk8 -nocrypt -in tls.key -out tls.p8 && mv tls.p8 tls.key \
             && openssl x509 -req -in tls.csr -CA root.pem -CAkey root.key -CAcreateserial \
             -days 30 -extfile san -out tls.pem 2>&1",
            dir.display(),
            key("root"),
            key("tls")
        ));
        Self { dir, address, child: None }
    }

    fn url(&self) -> String {
        format!("https://{}/api/v1/cfssl/sign", self.address)
    }

    fn mode(&self, mode: &str) {
        std::fs::write(self.dir.join("mode"), mode).unwrap();
    }

    fn start(&mut self, host: &Host) {
        let mut command = host.command(&std::env::current_exe().unwrap().to_string_lossy());
        command
            .args(["child_issues_until_killed", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD.0, &self.dir)
            .env(CHILD.1, &self.address)
            .stdout(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        eventually("the authority to listen", SOON, || {
            let out = host.try_sh(&format!(
                "curl -sk -m 2 https://{}/ -d x -o /dev/null; test $? != 7",
                self.address
            ));
            if out.status.success() { Ok(()) } else { Err("nobody listens".to_owned()) }
        });
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.kill();
    }
}

fn root(host: &Host) -> String {
    host.docker("swarm ca").trim().to_owned()
}

/// What `docker info` warns of, with everything else that it says.
fn info(host: &Host) -> String {
    let out = host.try_docker("info");
    [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

fn says(host: &Host, words: &[&str]) {
    eventually(&format!("{words:?} in docker info"), SOON, || {
        let said = info(host);
        if words.iter().all(|word| said.contains(word)) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn an_external_authority_issues_and_what_is_wrong_with_it_is_said() {
    let mut cluster = Cluster::start("ca_external", 2, 2);
    let (manager, worker) = (cluster.manager(), cluster.node(2));
    let (at, late) = (cluster.lab.host(3), cluster.lab.host(4));
    let mut authority = Authority::new(at);
    let url = authority.url();
    late.daemon_with(&DaemonOptions::default());
    import_shoal(late);
    // A swarm that begins has no root yet by which anybody else could issue.
    let refused = late.docker_fails(&format!("swarm init --external-ca protocol=cfssl,url={url}"));
    assert!(refused.contains("docker swarm ca --rotate"), "{refused}");
    let refused = late.docker_fails("swarm init --cert-expiry 5m");
    assert!(refused.contains("minimum certificate expiry time is 1h0m0s"), "{refused}");
    assert!(late.docker("info -f {{.Swarm.LocalNodeState}}").contains("inactive"));

    let file = authority.dir.join("root.pem");
    let rotate = format!(
        "swarm ca --rotate --quiet --ca-cert {} --external-ca protocol=cfssl,url={url}",
        file.display()
    );
    let first = root(manager);
    let refused = manager.docker_fails(&rotate);
    assert!(refused.contains(&url) && refused.contains("onnection refused"), "{refused}");
    authority.mode("garbage");
    authority.start(at);
    for (mode, why) in [
        ("garbage", "its answer is not cfssl's"),
        ("refuse", "it refuses: the policy says no"),
        ("other subject", "another subject than was asked for"),
        ("other root", "not issued by the swarm's root certificate"),
        ("slow", "no answer within 5 s"),
    ] {
        authority.mode(mode);
        let refused = manager.docker_fails(&rotate);
        assert!(refused.contains(&url) && refused.contains(why), "{mode}: {refused}");
    }
    assert_eq!(root(manager), first, "what was refused changes nothing");
    authority.mode("");
    manager.docker(&rotate);
    let own = std::fs::read_to_string(&file).unwrap();
    assert_eq!(root(manager), own.trim());

    // Away: nobody joins, and every node says why its certificate is not renewed, also when it has
    // expired.
    authority.kill();
    let token = manager.docker("swarm join-token -q worker");
    let join = format!("swarm join --token {} {}:2377", token.trim(), manager.address());
    let refused = late.docker_fails(&join);
    assert!(refused.contains(&url), "{refused}");
    says(manager, &["this node's certificate expired", "could not be renewed", &url]);
    says(worker, &["this node's certificate expired", "could not be renewed"]);
    // Back: all of them help themselves to the next one.
    authority.start(at);
    cluster.wait_ready(2);
    for host in [manager, worker] {
        eventually("a good certificate", SOON, || {
            let said = info(host);
            if said.contains("could not be renewed") { Err(said) } else { Ok(()) }
        });
    }
    late.docker(&join);
    cluster.nodes = 3;
    cluster.wait_ready(3);
    cluster.finish();
}
