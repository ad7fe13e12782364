//! Images for the lab, made from programs of this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::Host;
use crate::{dns, guest, must, shoal};

/// The commands that busybox is linked to in test images.
const APPLETS: &[&str] = &[
    "sh", "cat", "ls", "echo", "sleep", "wget", "nslookup", "ping", "true", "false", "id", "env",
    "hostname", "httpd", "nc", "grep", "head", "tail", "kill", "ps", "mount", "stat", "seq", "dd",
    "printenv", "rm", "mkdir", "touch", "test", "ip", "pwd", "wc", "printf", "stty", "date", "tr",
];

/// Makes a root file system with busybox in `dir`.
pub fn busybox_rootfs(dir: &Path) {
    for folder in ["bin", "etc", "tmp", "www", "proc", "sys", "dev"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        let link = dir.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link).unwrap();
        }
    }
    let users = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
    std::fs::write(dir.join("etc/passwd"), users).unwrap();
    std::fs::write(dir.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
}

/// Imports busybox as `busybox:lab` with the real `docker import`.
pub fn import_busybox(host: &Host) {
    let dir = host.dir().join("rootfs-busybox");
    busybox_rootfs(&dir);
    import(host, &dir, "busybox:lab", &["CMD [\"sh\"]"]);
}

/// Imports the program itself as `shoal:lab`: its `try` tools are server and client of the lab.
pub fn import_shoal(host: &Host) {
    let dir = host.dir().join("rootfs-shoal");
    busybox_rootfs(&dir);
    // Without its symbols it is a fraction of the size, and hashed as much faster.
    must(Command::new("strip").arg("-o").arg(dir.join("bin/shoal")).arg(shoal()));
    import(host, &dir, "shoal:lab", &["CMD [\"shoal\", \"try\", \"whoami\"]"]);
}

/// Imports the lab's unikernel as `NAME`, with `COLOUR` in its environment.
pub fn import_guest(host: &Host, name: &str, colour: &str) {
    let colour = format!("ENV COLOUR={colour}");
    import_unikernel(host, &guest(), name, &["EXPOSE 80", &colour]);
}

/// Imports the DNS appliance as `dns:lab`.
pub fn import_dns(host: &Host) {
    import_unikernel(host, &dns(), "dns:lab", &["EXPOSE 53/udp", "EXPOSE 53/tcp"]);
}

/// Imports the unikernel in `file` as `NAME`, with further changes of its configuration.
pub fn import_unikernel(host: &Host, file: &Path, name: &str, changes: &[&str]) {
    let dir = host.dir().join("rootfs-unikernel");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(file, dir.join("unikernel")).unwrap();
    let usual = ["LABEL shoal.workload=unikernel", "ENTRYPOINT [\"/unikernel\"]"];
    import(host, &dir, name, &[&usual, changes].concat());
}

/// Imports this machine's real nginx as `nginx:lab`.
pub fn import_nginx(host: &Host) {
    let dir = host.dir().join("rootfs-nginx");
    busybox_rootfs(&dir);
    for folder in ["usr/share/nginx/html", "var/log/nginx", "var/lib/nginx", "etc/nginx", "run"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let linked = must(Command::new("ldd").arg("/usr/sbin/nginx"));
    let libraries = linked.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    for file in libraries.chain([PathBuf::from("/usr/sbin/nginx")]) {
        let to = dir.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, to).unwrap();
    }
    let settings = "daemon off;\nerror_log /dev/stderr;\npid /run/nginx.pid;\nuser root;\n\
        events {}\nhttp {\n  access_log /dev/stdout;\n  server {\n    listen 80;\n    \
        root /usr/share/nginx/html;\n    location = /who {\n      \
        return 200 \"$hostname sees $remote_addr\\n\";\n    }\n  }\n}\n";
    std::fs::write(dir.join("etc/nginx/nginx.conf"), settings).unwrap();
    std::fs::write(dir.join("usr/share/nginx/html/index.html"), "from the image\n").unwrap();
    import(host, &dir, "nginx:lab", &["CMD [\"nginx\"]", "EXPOSE 80"]);
}

fn import(host: &Host, rootfs: &Path, name: &str, changes: &[&str]) {
    let mut tar = Command::new("tar")
        .args(["-C"])
        .arg(rootfs)
        .args(["-cf", "-", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut args = vec!["import"];
    for change in changes {
        args.extend(["--change", change]);
    }
    args.extend(["-", name]);
    let mut command = host.docker_cmd(&args);
    command.stdin(tar.stdout.take().unwrap());
    must(&mut command);
    assert!(tar.wait().unwrap().success(), "tar of '{}' failed", rootfs.display());
}
