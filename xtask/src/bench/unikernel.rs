//! The table of unikernels: start, size, memory, density, DNS against NSD, HTTP against nginx.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::density;
use super::first_byte;
use super::ground::{Ground, Guest, SERVER, address};
use super::load;
use super::process::{rollup_kib, size};
use super::protection;
use super::service;
use super::table::{Table, median};
use crate::packages;
use crate::steps::output;

/// Backends, in the order of the table's columns.
const BACKENDS: [&str; 2] = ["process", "kvm"];
/// Boots and first bytes that are measured.
const BOOTS: usize = 51;
/// Rounds of load; ours and the other's take turns.
const ROUNDS: usize = 5;
/// Idle instances whose memory is looked at.
const IDLE: u32 = 10;
/// Names in the zone.
const NAMES: u32 = 10_000;
/// Bytes of the page, as nginx's own first page has.
const PAGE_BYTES: usize = 612;
/// Heap of each instance; touched only as far as it is used.
const HEAP_BYTES: u64 = 64 << 20;
/// Tasks of the service that is started through the whole of Shoal.
const TASKS: u32 = 1000;
/// What stands in the table of a machine without it.
const NO_KVM: &str = "no /dev/kvm";
/// Device of both appliances.
const DEVICE: Option<&str> = Some("net");

/// Measures one row, or some that belong together.
type Row<'a> = &'a dyn Fn(&mut Table) -> Result<()>;

/// What was built.
struct Images {
    hello: PathBuf,
    web: PathBuf,
    dns: PathBuf,
}

/// Measures every row. `--rows a,b` measures only some and writes nothing.
///
/// # Errors
/// If a row could not be measured.
pub fn run(args: &[String]) -> Result<()> {
    packages::install_for_benchmarks()?;
    let only = args.iter().position(|a| a == "--rows").and_then(|at| args.get(at + 1));
    let wanted = |row: &str| only.is_none_or(|rows| rows.split(',').any(|r| r == row));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("find the repository")?;
    let programs = build_programs(root)?;
    let images = build_images(root, &programs)?;
    let ground = Ground::new(programs.join("shoal-tender"))?;
    let page = ground.dir.join("page");
    std::fs::create_dir_all(&page)?;
    std::fs::write(page.join("index.html"), "x".repeat(PAGE_BYTES))?;
    let mut table = Table::default();
    let rows: [(&str, Row<'_>); 9] = [
        ("protection", &|table| protected(table, root)),
        ("size", &|table| sizes(table, &images)),
        ("boot", &|table| boots(table, &programs, &images)),
        ("first-byte", &|table| first_bytes(table, &ground, &images, &page)),
        ("memory", &|table| memory(table, &ground, &images, &page)),
        ("density", &|table| many(table, &ground, &images, &page)),
        ("service", &|table| through_shoal(table, root, &programs)),
        ("dns", &|table| dns(table, &ground, &images)),
        ("http", &|table| http(table, &ground, &images, &page)),
    ];
    for (name, row) in rows {
        if wanted(name) {
            row(&mut table).with_context(|| format!("row '{name}'"))?;
        }
    }
    if only.is_none() {
        let file = root.join("docs/benchmarks.md");
        let preface = preface(&programs, &images)?;
        table.write(&file, "cargo xtask bench unikernel", &preface)?;
        println!("written to docs/benchmarks.md");
    }
    Ok(())
}

fn preface(programs: &Path, images: &Images) -> Result<String> {
    let kernel = output(Command::new("uname").arg("-r"))?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kvm = if has("kvm") {
        let told = boot_times(programs, images, "kvm", 1)?;
        format!("KVM in {}", told["kvm"].as_str().unwrap_or("an unknown flavour"))
    } else {
        NO_KVM.to_owned()
    };
    Ok(format!(
        "{cores} cores shared by client and server, Linux {}, {kvm}. Medians of {BOOTS} \
         starts and {ROUNDS} rounds;\n`cargo xtask bench unikernel` measures again.",
        // Without the distribution's own suffix.
        kernel.trim().split('-').next().unwrap_or_default(),
    ))
}

/// What `shoal unikernel bench` tells of boots of `hello`.
fn boot_times(
    programs: &Path,
    images: &Images,
    backend: &str,
    count: usize,
) -> Result<serde_json::Value> {
    let said = output(
        Command::new(programs.join("shoal-unikernel"))
            .args(["bench", "-n", &count.to_string(), "--backend", backend, "--json"])
            .arg(&images.hello),
    )?;
    let told: serde_json::Value = serde_json::from_str(&said).context("read the boots")?;
    Ok(told.as_array().and_then(|list| list.first()).unwrap_or(&told).clone())
}

fn build_programs(root: &Path) -> Result<PathBuf> {
    build(root, &["shoal-tender", "shoal-unikernel-tools"])?;
    // Beside this program, which cargo has put in its own profile's folder.
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("find cargo's folder")?;
    Ok(target.join("release"))
}

/// Builds packages of the workspace as users would.
///
/// # Errors
/// If they do not compile.
pub(super) fn build(root: &Path, packages: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["build", "--release", "--quiet"]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    let status = command.status().context("start cargo")?;
    ensure!(status.success(), "{packages:?} could not be built");
    Ok(())
}

fn build_images(root: &Path, programs: &Path) -> Result<Images> {
    let dir = programs.join("bench-images");
    std::fs::create_dir_all(&dir)?;
    let build = |name: &str| -> Result<PathBuf> {
        let file = dir.join(name);
        let project = root.join("unikernels").join(name);
        let mut command = Command::new(programs.join("shoal-unikernel"));
        command.arg("build").arg(project).arg("--output").arg(&file);
        output(&mut command).with_context(|| format!("build the image '{name}'"))?;
        Ok(file)
    };
    Ok(Images { hello: build("hello")?, web: build("web")?, dns: build("dns")? })
}

/// What is measured on each backend; of the one that this machine has not, that it has it not.
fn each_backend(measure: impl Fn(&str) -> Result<String>) -> [Result<String>; 2] {
    BACKENDS.map(|backend| if has(backend) { measure(backend) } else { Ok(NO_KVM.to_owned()) })
}

fn has(backend: &str) -> bool {
    backend != "kvm" || Path::new("/dev/kvm").exists()
}

fn sizes(table: &mut Table, images: &Images) -> Result<()> {
    let rows = [
        ("hello", &images.hello, "128", "48"),
        ("dns", &images.dns, "449", "180"),
        ("web", &images.web, "600", "250"),
    ];
    for (name, file, must, aim) in rows {
        let kb = format!("{:.1} KB", size(file)? as f64 / 1000.0);
        let what = format!("image `{name}`, symbols included");
        table.add(&what, &format!("{must} KB"), &format!("{aim} KB"), kb, "the same".to_owned());
    }
    Ok(())
}

fn boots(table: &mut Table, programs: &Path, images: &Images) -> Result<()> {
    let both = each_backend(|backend| {
        let told = boot_times(programs, images, backend, BOOTS)?;
        let times = told["to_guest_us"].as_array().context("no times")?;
        let us = median(times.iter().filter_map(serde_json::Value::as_f64).collect());
        Ok(format!("{:.2} ms", us / 1000.0))
    });
    let [process, kvm] = both;
    table.add("exec of the tender to guest code (`hello`)", "10 ms", "1 ms / 3 ms", process?, kvm?);
    Ok(())
}

fn web<'a>(images: &'a Images, mounts: &'a [(&'a str, &'a Path)]) -> Guest<'a> {
    Guest { image: &images.web, device: DEVICE, memory_bytes: HEAP_BYTES, args: &["web"], mounts }
}

fn first_bytes(table: &mut Table, ground: &Ground, images: &Images, page: &Path) -> Result<()> {
    let mounts = [("/srv", page)];
    let guest = web(images, &mounts);
    ground.add_taps(1, 1)?;
    let both = each_backend(|backend| {
        let config = ground.config(1, backend, &guest)?;
        let to = format!("{}:80", address(1));
        let times: Result<Vec<f64>> =
            (0..BOOTS).map(|_| first_byte::measure(ground, &config, &to)).collect();
        Ok(format!("{:.2} ms", median(times?)))
    });
    ground.remove_taps(1, 1)?;
    let [process, kvm] = both;
    table.add("start command to first HTTP byte (`web`)", "20 ms", "3 ms / 8 ms", process?, kvm?);
    Ok(())
}

fn memory(table: &mut Table, ground: &Ground, images: &Images, page: &Path) -> Result<()> {
    let mounts = [("/srv", page)];
    let guest = web(images, &mounts);
    ground.add_taps(1, IDLE)?;
    let both = each_backend(|backend| {
        let instances: Result<Vec<_>> =
            (1..=IDLE).map(|n| ground.start(n, backend, &guest)).collect();
        let instances = instances?;
        for number in 1..=IDLE {
            load::until_http(ground, &address(number))?;
        }
        let pss: Result<Vec<f64>> =
            instances.iter().map(|i| Ok(rollup_kib(i.id(), "Pss")? as f64)).collect();
        Ok(format!("{:.2} MB", median(pss?) / 1024.0))
    });
    ground.remove_taps(1, IDLE)?;
    let [process, kvm] = both;
    let what = format!("memory of an idle `web`, tender included (PSS, one of {IDLE})");
    table.add(&what, "6 MB", "0.6 MB / 1.5 MB", process?, kvm?);
    Ok(())
}

fn many(table: &mut Table, ground: &Ground, images: &Images, page: &Path) -> Result<()> {
    let mounts = [("/srv", page)];
    let guest = web(images, &mounts);
    let both = each_backend(|backend| {
        let d = density::measure(ground, backend, &guest, 1000)?;
        Ok(format!(
            "{}: {:.0} starts/s, each {:.2} MB and {:.2} MB in the kernel",
            d.count,
            d.starts_per_second,
            d.pss_kib / 1024.0,
            d.kernel_kib / 1024.0
        ))
    });
    let [process, kvm] = both;
    let what = "`web` instances at once, every one answering (tenders alone, no shim)";
    table.add(what, "300", "1,000 each, 200 starts/s", process?, kvm?);
    Ok(())
}

/// The same by way of the daemon, with a shim for each.
fn through_shoal(table: &mut Table, root: &Path, programs: &Path) -> Result<()> {
    build(root, &["shoal"])?;
    let archive = programs.join("bench-images/web.tar");
    let mut command = Command::new(programs.join("shoal-unikernel"));
    command.arg("build").arg(root.join("unikernels/web")).args(["--image", "web:bench"]);
    output(command.arg("--archive").arg(&archive)).context("build the image 'web'")?;
    let both = each_backend(|backend| {
        let s = service::measure(&programs.join("shoal"), &archive, backend, TASKS)?;
        let rate = f64::from(s.count) / s.answered_seconds;
        Ok(format!(
            "{}: {rate:.0} starts/s (running after {:.1} s), each {:.2} MB and {:.2} MB in kernel \
             and daemon",
            s.count,
            s.running_seconds,
            s.pss_kib / 1024.0,
            s.other_kib / 1024.0
        ))
    });
    let [process, kvm] = both;
    let what =
        "tasks of one service on one node, every one answering (daemon, overlay, a shim each)";
    table.add(what, "300", "200 starts/s", process?, kvm?);
    Ok(())
}

fn protected(table: &mut Table, root: &Path) -> Result<()> {
    let count = protection::count(root)?;
    let all = format!("{count} of {count}");
    let other = if has("kvm") { all.clone() } else { NO_KVM.to_owned() };
    let what = "memory-protection tests, stack guard and page tables among them";
    table.add(what, "5 of 5", "+ 2", all, other);
    Ok(())
}

fn dns(table: &mut Table, ground: &Ground, images: &Images) -> Result<()> {
    let zones = ground.dir.join("zones");
    std::fs::create_dir_all(&zones)?;
    let zone = zones.join("bench.test.zone");
    let mut text = String::from(
        "$ORIGIN bench.test.\n$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 300\n@ NS ns\nns A \
         192.0.2.1\n",
    );
    let mut queries = String::new();
    for n in 1..=NAMES {
        // Cannot fail: writing to a string.
        let _ = writeln!(text, "h{n} A 198.51.{}.{}", n >> 8 & 255, n & 255);
        // A fixed order that is not the zone's: multiples of a number without common factors.
        let _ = writeln!(queries, "h{}.bench.test A", u64::from(n) * 7919 % u64::from(NAMES) + 1);
    }
    std::fs::write(&zone, text)?;
    let list = ground.dir.join("queries");
    std::fs::write(&list, queries)?;
    let mounts = [("/zones", zones.as_path())];
    let guest = Guest {
        image: &images.dns,
        device: DEVICE,
        memory_bytes: HEAP_BYTES,
        args: &["dns", "--zones", "/zones"],
        mounts: &mounts,
    };
    let other = |workers| -> Result<f64> {
        let server = load::nsd(ground, &zone, workers)?;
        let rate = load::dns(ground, SERVER, &list);
        load::end(server);
        rate
    };
    let own = |backend: &str| -> Result<f64> {
        ground.add_taps(1, 1)?;
        let instance = ground.start(1, backend, &guest)?;
        load::until_dns(ground, &address(1))?;
        let rate = load::dns(ground, &address(1), &list);
        drop(instance);
        ground.remove_taps(1, 1)?;
        rate
    };
    let what = "DNS answers/s with dnsperf, against NSD";
    compare(table, what, ("1.0 ×", "1.5 ×"), other, own)
}

fn http(table: &mut Table, ground: &Ground, images: &Images, page: &Path) -> Result<()> {
    let mounts = [("/srv", page)];
    let guest = web(images, &mounts);
    let other = |workers| -> Result<f64> {
        let server = load::nginx(ground, page, workers)?;
        let rate = load::http(ground, SERVER);
        load::end(server);
        rate
    };
    let own = |backend: &str| -> Result<f64> {
        ground.add_taps(1, 1)?;
        let instance = ground.start(1, backend, &guest)?;
        load::until_http(ground, &address(1))?;
        let rate = load::http(ground, &address(1));
        drop(instance);
        ground.remove_taps(1, 1)?;
        rate
    };
    let what = "HTTP requests/s (612 B, keep-alive, wrk), against nginx";
    compare(table, what, ("1.0 ×", "1.7 ×"), other, own)
}

/// The other with one and with two processes (the better counts) and ours on both backends, in
/// turns; medians and their ratio.
fn compare(
    table: &mut Table,
    what: &str,
    (must, aim): (&str, &str),
    other: impl Fn(u32) -> Result<f64>,
    own: impl Fn(&str) -> Result<f64>,
) -> Result<()> {
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        rates[0].push(other(1)?);
        rates[1].push(other(2)?);
        for (rates, backend) in rates[2..].iter_mut().zip(BACKENDS) {
            if has(backend) {
                rates.push(own(backend)?);
            }
        }
    }
    let [one, two, process, kvm] = rates.map(median);
    let (theirs, workers) = if one > two { (one, "1 process") } else { (two, "2 processes") };
    let show = |rate: f64| {
        if rate.is_nan() {
            return NO_KVM.to_owned();
        }
        format!("{rate:.0}/s, {:.2} × {theirs:.0}/s ({workers})", rate / theirs)
    };
    table.add(what, must, aim, show(process), show(kvm));
    Ok(())
}
