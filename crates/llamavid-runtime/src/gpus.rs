//! Graphics processors and their memory, as NVIDIA's program lists them. Without it there are none.

use std::process::Command;

use serde::Serialize;

use crate::cuda;

const PROGRAM: &str = "nvidia-smi";
const QUERY: [&str; 2] = ["--query-gpu=uuid,memory.total,memory.free,name", "--format=csv,noheader,nounits"];

/// A graphics processor. Bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Gpu {
    /// `cuda:N`.
    pub(crate) device: String,
    pub(crate) name: String,
    pub(crate) total: u64,
    pub(crate) available: u64,
}

/// All of them. Takes a while where there are some: the driver is asked.
pub(crate) fn gpus() -> Vec<Gpu> {
    match Command::new(PROGRAM).args(QUERY).output() {
        Ok(output) if output.status.success() => {
            let uuids: Vec<_> = cuda::support().devices.iter().map(|device| device.uuid.as_str()).collect();
            parse(&String::from_utf8_lossy(&output.stdout), &uuids)
        }
        // No driver, or one that reaches no device.
        _ => Vec::new(),
    }
}

/// Lines of UUID, MiB in all, MiB free and name; the program has an order of its own, and lists what `CUDA_VISIBLE_DEVICES` hides. `uuids`
/// are those of `cuda:0` and on.
fn parse(listed: &str, uuids: &[&str]) -> Vec<Gpu> {
    let of_uuid = |wanted: &str| {
        listed.lines().find_map(|line| {
            let mut fields = line.splitn(4, ',').map(str::trim);
            fields.next().filter(|uuid| *uuid == wanted)?;
            let mut mebibytes = || fields.next()?.parse::<u64>().ok();
            let (total, available) = (mebibytes()?, mebibytes()?);
            Some((fields.next()?.to_owned(), total << 20, available << 20))
        })
    };
    let found = uuids.iter().enumerate().filter_map(|(index, uuid)| {
        let (name, total, available) = of_uuid(uuid)?;
        Some(Gpu { device: format!("cuda:{index}"), name, total, available })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program_in_the_order_of_the_driver() {
        let listed =
            "GPU-a, 81559, 80994, NVIDIA H100 80GB HBM3\nGPU-b, 40960, 1024, NVIDIA A100\nGPU-c, 1, 1, X\n";
        let found = parse(listed, &["GPU-b", "GPU-a"]);
        assert_eq!(found.iter().map(|gpu| gpu.device.as_str()).collect::<Vec<_>>(), ["cuda:0", "cuda:1"]);
        let first = Gpu {
            device: "cuda:0".into(),
            name: "NVIDIA A100".into(),
            total: 40_960 << 20,
            available: 1 << 30,
        };
        assert_eq!(found[0], first);
    }

    #[test]
    fn what_is_no_list_has_no_processors() {
        for text in ["", "No devices were found\n", "GPU-a, [N/A], [N/A], NVIDIA X\n"] {
            assert_eq!(parse(text, &["GPU-a"]), [], "{text}");
        }
    }
}
