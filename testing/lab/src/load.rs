//! Clients that ask for something while a test goes on, each request with a connection of its own.

use std::process::{Child, Command, Stdio};

use crate::Cluster;

/// Clients of two kinds, to the port that is named first, of one address after the other. Fifty
/// take a new connection for each request. Ten keep theirs until they are told to close it; of a
/// request whose first byte was acknowledged they want the answer (`tcpi_bytes_acked` of `struct
/// tcp_info`).
const MANY: &str = "
import os, random, socket, struct, sys, threading, time
port, addresses = int(sys.argv[1]), sys.argv[2:]
count, failed = [0, 0], []
def line_to(address):
    line = socket.create_connection((address, port), 10)
    line.settimeout(10)
    return line
def once(address):
    with line_to(address) as line:
        line.sendall(b'GET / HTTP/1.0\\r\\nhost: x\\r\\n\\r\\n')
        said = b''
        while more := line.recv(4096): said += more
        if b' 200 ' not in said[:20]: raise OSError('answer: %r' % said[:80])
def acknowledged(line):
    info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return struct.unpack_from('=Q', info, 120)[0]
def again(line):
    before = acknowledged(line)
    try:
        line.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')
        said = b''
        while b'\\r\\n\\r\\n' not in said:
            more = line.recv(4096)
            if not more: raise OSError('the end after %d bytes' % len(said))
            said += more
    except OSError:
        if acknowledged(line) == before: return False
        raise
    if b' 200 ' not in said[:20]: raise OSError('answer: %r' % said[:80])
    return b'keep-alive' in said
def note(kind, address, error):
    failed.append('%s %s %s %r' % (time.strftime('%T'), kind, address, error))
def new(number):
    time.sleep(random.random())
    while not os.path.exists('stop'):
        address = addresses[number % len(addresses)]
        number += 1
        try: once(address)
        except OSError as error: note('new', address, error)
        count[0] += 1
        time.sleep(0.5 + random.random())
def kept(number):
    line, address = None, addresses[number % len(addresses)]
    while not os.path.exists('stop'):
        try:
            if line is None: line = line_to(address)
            if not again(line): line = line.close()
            count[1] += 1
        except OSError as error:
            note('kept', address, error)
            line = None
        time.sleep(0.1 + 0.2 * random.random())
threads = [threading.Thread(target=new, args=(number,)) for number in range(50)]
threads += [threading.Thread(target=kept, args=(number,)) for number in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for line in failed: print(line)
print('total', min(count))
";

/// Requests from a host until it is told to stop, to one node after the other; a line for each that
/// failed, and at last how many there were.
#[derive(Debug)]
pub struct Load(Child);

impl Load {
    /// One client on host `from` that asks every node's `port`.
    #[must_use]
    pub fn start(cluster: &Cluster, from: usize, port: u16) -> Self {
        let urls: Vec<String> = (1..=cluster.nodes)
            .map(|index| format!("http://{}:{port}/", cluster.node(index).address()))
            .collect();
        let line = format!(
            "count=0; while [ ! -e stop ]; do for url in {}; do \
             said=$(curl -s -m 10 -o /dev/null -w '%{{http_code}} %{{errormsg}}' $url); \
             case \"$said\" in 200*) ;; *) echo \"$(date +%T.%N) $url $said\";; esac; \
             count=$((count+1)); sleep 0.01; done; done; echo total $count",
            urls.join(" ")
        );
        let mut command = cluster.lab.host(from).command("sh");
        command.args(["-c", &line]);
        Self::of(command, cluster, from)
    }

    /// Fifty clients on host `from` with a new connection for each request, and ten that keep
    /// theirs, if the server lets them; to every node's `port`.
    #[must_use]
    pub fn many(cluster: &Cluster, from: usize, port: u16) -> Self {
        let mut command = cluster.lab.host(from).command("python3");
        command.args(["-c", MANY, &port.to_string()]);
        command.args((1..=cluster.nodes).map(|index| cluster.node(index).address()));
        Self::of(command, cluster, from)
    }

    /// Clients of another kind on host `from`: they end once there is a file `stop`, and print what
    /// this says.
    #[must_use]
    pub fn of(mut command: Command, cluster: &Cluster, from: usize) -> Self {
        command.current_dir(cluster.lab.host(from).dir()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Ends it: there were more than `least` requests, and none may have failed.
    ///
    /// # Panics
    /// If one has.
    pub fn finish(self, cluster: &Cluster, from: usize, least: u32) {
        std::fs::write(cluster.lab.host(from).dir().join("stop"), "").unwrap();
        let text = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("total ")).unwrap();
        assert!(total.parse::<u32>().unwrap() > least, "{text}");
        assert_eq!(text.lines().count(), 1, "requests failed:\n{text}");
    }
}
