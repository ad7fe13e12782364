//! `shoal unikernel pcap`: the frames of a running unikernel, as every network tool reads them.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use shoal_tender::stats::reader::{Frame, Reader};

use super::find::{HostArgs, Target};

/// First word of a capture file whose times have nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Ethernet.
const LINK_TYPE: u32 = 1;
/// The longest frame: what segmentation offload makes, with its header.
const SNAP_BYTES: u32 = 1 << 17;
/// Between two looks at an empty ring: it holds a megabyte, some ten milliseconds of a busy link.
const PAUSE: Duration = Duration::from_millis(2);
/// A device kind of the manifest.
const KIND_NET: u64 = 1;

/// Options of `shoal unikernel pcap`.
#[derive(Args, Clone, Debug)]
pub struct PcapArgs {
    /// Container or task on this node.
    task: String,
    /// Where the capture goes; `-` is standard output: … | tcpdump -r -
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    write: PathBuf,
    /// End after so many frames.
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// The network device, if the image has several.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    #[command(flatten)]
    host: HostArgs,
}

/// Writes frames until it is told to stop, or the unikernel ends.
pub async fn run(args: PcapArgs) -> Result<()> {
    let target = args.host.find(&args.task).await?;
    let opened = Reader::open(&target.stats_file);
    let mut reader = opened.with_context(|| format!("open the counters of '{}'", target.name))?;
    let device = device(&reader, args.device.as_deref())?;
    let mut out = output(&args.write)?;
    reader.capture().with_context(|| format!("capture the frames of '{}'", target.name))?;
    let dropped = reader.dropped();
    let stopped = tokio::signal::ctrl_c();
    let copied = tokio::select! {
        copied = copy(&mut reader, device, &target, args.count, &mut out) => copied,
        stopped = stopped => {
            stopped.context("wait for a signal")?;
            Ok(())
        }
    };
    match copied.and_then(|()| out.flush()) {
        // Whoever read the capture has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.with_context(|| format!("write '{}'", args.write.display()))?,
    }
    match reader.dropped() - dropped {
        0 => Ok(()),
        lost => {
            eprintln!("shoal unikernel: {lost} frames came faster than they could be written");
            Ok(())
        }
    }
}

/// The index of the device that is meant.
fn device(reader: &Reader, name: Option<&str>) -> Result<u16> {
    let devices = reader.snapshot().devices;
    let fits = |device: &shoal_tender::stats::reader::DeviceSnapshot| {
        device.kind == KIND_NET && name.is_none_or(|name| device.name == name)
    };
    let Some(index) = devices.iter().position(fits) else {
        let known: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        bail!("it has no such network device; its devices: {}", known.join(", "));
    };
    u16::try_from(index).context("count the devices")
}

fn output(path: &PathBuf) -> Result<BufWriter<Box<dyn Write>>> {
    let out: Box<dyn Write> = if path.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            bail!("a capture is nothing for a terminal: use '-w FILE' or '| tcpdump -r -'");
        }
        Box::new(io::stdout())
    } else {
        Box::new(File::create(path).with_context(|| format!("make '{}'", path.display()))?)
    };
    Ok(BufWriter::new(out))
}

async fn copy(
    reader: &mut Reader,
    device: u16,
    target: &Target,
    count: Option<u64>,
    out: &mut impl Write,
) -> io::Result<()> {
    out.write_all(&header())?;
    out.flush()?;
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        match reader.next_frame().map_err(io::Error::other)? {
            Some(frame) if frame.device == device => {
                out.write_all(&record(&frame))?;
                left -= 1;
            }
            Some(_) => {}
            None => {
                out.flush()?;
                // The directory goes with the instance.
                if !target.stats_file.exists() {
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(())
}

/// The head of a capture file.
fn header() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend(2_u16.to_ne_bytes());
    bytes.extend(4_u16.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(SNAP_BYTES.to_ne_bytes());
    bytes.extend(LINK_TYPE.to_ne_bytes());
    bytes
}

/// A frame with its time and lengths.
fn record(frame: &Frame) -> Vec<u8> {
    /// Nanoseconds in a second.
    const NS: u64 = 1_000_000_000;
    let whole = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX);
    let kept = whole.min(SNAP_BYTES);
    let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
    let mut bytes = Vec::with_capacity(16 + frame.bytes.len());
    bytes.extend(word(frame.wall_ns / NS));
    bytes.extend(word(frame.wall_ns % NS));
    bytes.extend(kept.to_ne_bytes());
    bytes.extend(whole.to_ne_bytes());
    bytes.extend(frame.bytes.iter().take(kept as usize));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_file_has_the_form_that_tools_know() {
        let frame =
            Frame { device: 0, from_guest: true, wall_ns: 5_000_000_007, bytes: vec![1, 2, 3] };
        let bytes = [header(), record(&frame)].concat();
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 1));
        assert_eq!((word(24), word(28), word(32), word(36)), (5, 7, 3, 3));
        assert_eq!(bytes.len(), 24 + 16 + 3);
    }
}
