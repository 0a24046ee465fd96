//! Graphics processors and their memory, as NVIDIA's driver lists them. Without its program there are none.

use std::process::Command;

use serde::Serialize;

const PROGRAM: &str = "nvidia-smi";
const QUERY: [&str; 2] = ["--query-gpu=index,memory.total,memory.free,name", "--format=csv,noheader,nounits"];

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
        Ok(output) if output.status.success() => parse(&String::from_utf8_lossy(&output.stdout)),
        // No driver, or one that reaches no device.
        _ => Vec::new(),
    }
}

/// Lines of index, MiB in all, MiB free and name.
fn parse(listed: &str) -> Vec<Gpu> {
    listed
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, ',').map(str::trim);
            let mut number = || fields.next()?.parse::<u64>().ok();
            let (index, total, available) = (number()?, number()?, number()?);
            let name = fields.next()?.to_owned();
            Some(Gpu {
                device: format!("cuda:{index}"),
                name,
                total: total << 20,
                available: available << 20,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_driver() {
        let listed = "0, 81559, 80994, NVIDIA H100 80GB HBM3\n1, 81559, 1024, NVIDIA H100 80GB HBM3\n";
        let found = parse(listed);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            Gpu {
                device: "cuda:1".into(),
                name: "NVIDIA H100 80GB HBM3".into(),
                total: 81_559 << 20,
                available: 1 << 30,
            }
        );
    }

    #[test]
    fn what_is_no_list_has_no_processors() {
        for text in ["", "No devices were found\n", "0, [N/A], [N/A], NVIDIA X\n"] {
            assert_eq!(parse(text), [], "{text}");
        }
    }
}
