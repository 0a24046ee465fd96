//! Devices that compute one model together: each has its shares of the weights, and what they give is added up.
//!
//! One thread leads them all: a step of every rank, then the sum of what they gave, which all of them enter in one call. So none ever
//! waits for another that failed on its way: the error comes before the sum, which then is not begun.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
#[cfg(feature = "cuda")]
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda::Communicators;

/// One device, or several that compute together: rank r is the r-th. Clones are the same ranks.
#[derive(Debug, Clone)]
pub struct Ranks {
    /// Never none.
    devices: Vec<Device>,
    sums: Sums,
}

/// Where sums are made.
#[derive(Debug, Clone)]
enum Sums {
    /// In the memory that all ranks have in common, or there is only one.
    InPlace,
    /// By NCCL, on the devices' own streams.
    #[cfg(feature = "cuda")]
    Nccl(Arc<Communicators>),
}

impl Ranks {
    /// A device by itself.
    pub fn one(device: &Device) -> Self {
        Self { devices: vec![device.clone()], sums: Sums::InPlace }
    }

    /// The CPU so many times, or different CUDA devices. For these NCCL's library must be open: without it the process ends.
    ///
    /// # Errors
    /// No device, different kinds of them, and what NCCL has against them.
    pub fn of(devices: Vec<Device>) -> Result<Self> {
        if devices.is_empty() {
            bail!("no device computes");
        }
        if devices.len() == 1 || devices.iter().all(Device::is_cpu) {
            return Ok(Self { devices, sums: Sums::InPlace });
        }
        #[cfg(feature = "cuda")]
        if devices.iter().all(Device::is_cuda) {
            let sums = Sums::Nccl(Arc::new(Communicators::new(&devices)?));
            return Ok(Self { devices, sums });
        }
        bail!("{devices:?} have no way to add up what they compute")
    }

    /// The devices, one a rank.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The device of the first rank, which has what only one needs.
    pub fn first(&self) -> &Device {
        &self.devices[0]
    }

    /// A step of each rank, with what is its own among `inputs`. On a CPU one after the other, each with all cores; on CUDA devices side
    /// by side, for what takes a step's time there is to launch its kernels.
    ///
    /// # Errors
    /// That of a rank; what the others gave is dropped.
    pub fn each<I: Send, T: Send, E: Send>(
        &self,
        inputs: Vec<I>,
        step: impl Fn(I) -> std::result::Result<T, E> + Sync,
    ) -> std::result::Result<Vec<T>, E> {
        match &self.sums {
            Sums::InPlace => inputs.into_iter().map(step).collect(),
            #[cfg(feature = "cuda")]
            Sums::Nccl(_) => inputs.into_par_iter().with_max_len(1).map(&step).collect(),
        }
    }

    /// `x`, which every rank has, plus the sum of `addends`, which have its shape: again what every rank has. On a CPU they are added in
    /// the order of the ranks.
    ///
    /// # Errors
    /// Another number of tensors than of ranks, or different ones; a device that failed. After that no more sums are made.
    pub fn add(&self, x: &[Tensor], addends: &[Tensor]) -> Result<Vec<Tensor>> {
        let count = self.devices.len();
        let [first, rest @ ..] = addends else { bail!("nothing is added for {count} ranks") };
        if x.len() != count || addends.len() != count {
            bail!("{} tensors and {} addends are not those of {count} ranks", x.len(), addends.len());
        }
        match &self.sums {
            Sums::InPlace => {
                let sum = rest.iter().try_fold(first.clone(), |sum, addend| sum + addend)?;
                Ok(vec![(&x[0] + sum)?; count])
            }
            #[cfg(feature = "cuda")]
            Sums::Nccl(communicators) => {
                let sums = communicators.sum(addends)?;
                x.iter().zip(sums).map(|(x, sum)| x + sum).collect()
            }
        }
    }

    /// What the first rank has, for every rank.
    ///
    /// # Errors
    /// A device that failed.
    pub fn share(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        match &self.sums {
            Sums::InPlace => Ok(vec![x.clone(); self.devices.len()]),
            // A sum, of which the others' addends are zero: exactly the same numbers, and one collective is enough for all.
            #[cfg(feature = "cuda")]
            Sums::Nccl(communicators) => {
                let zeros =
                    self.devices[1..].iter().map(|device| Tensor::zeros(x.shape(), x.dtype(), device));
                communicators.sum(&std::iter::once(Ok(x.clone())).chain(zeros).collect::<Result<Vec<_>>>()?)
            }
        }
    }

    /// Columns that each rank has computed, (…, its own number of them), behind each other: (…, all), on the first device.
    ///
    /// # Errors
    /// Another number of tensors than of ranks; a device that failed.
    pub fn gather(&self, columns: &[Tensor]) -> Result<Tensor> {
        if columns.len() != self.devices.len() {
            bail!("columns of {} ranks are not those of {}", columns.len(), self.devices.len());
        }
        match &self.sums {
            Sums::InPlace => Tensor::cat(columns, candle_core::D::Minus1),
            // As above: each number has one addend that is not zero.
            #[cfg(feature = "cuda")]
            Sums::Nccl(communicators) => {
                let widths = columns.iter().map(|columns| columns.dim(candle_core::D::Minus1));
                let widths = widths.collect::<Result<Vec<_>>>()?;
                let all: usize = widths.iter().sum();
                let mut before = 0;
                let mut padded = Vec::with_capacity(columns.len());
                for (columns, width) in columns.iter().zip(widths) {
                    let behind = all - before - width;
                    padded.push(columns.pad_with_zeros(candle_core::D::Minus1, before, behind)?);
                    before += width;
                }
                Ok(communicators.sum(&padded)?.swap_remove(0))
            }
        }
    }

    /// Waits until all ranks have done what they were given. Whoever reads numbers without this may wait for ever when a device fails.
    ///
    /// # Errors
    /// A device that failed.
    pub fn settle(&self) -> Result<()> {
        match &self.sums {
            Sums::InPlace => Ok(()),
            #[cfg(feature = "cuda")]
            Sums::Nccl(communicators) => communicators.settle(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Mutex;

    use super::*;

    fn ranks(count: usize) -> Ranks {
        Ranks::of(vec![Device::Cpu; count]).unwrap()
    }

    fn row(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.to_vec1().unwrap()
    }

    #[test]
    fn sums_are_made_in_the_order_of_the_ranks() {
        // In another order the small ones are lost.
        let addends = [1e8f32, -1e8, 1.].map(|value| row(&[value]));
        let x = row(&[0.5]);
        let sums = ranks(3).add(&[x.clone(), x.clone(), x], &addends).unwrap();
        assert_eq!(sums.iter().map(values).collect::<Vec<_>>(), [[1.5], [1.5], [1.5]]);
    }

    #[test]
    fn a_rank_has_what_the_first_one_has_and_all_give_their_columns() {
        assert_eq!(
            ranks(2).share(&row(&[1., 2.])).unwrap().iter().map(values).collect::<Vec<_>>(),
            [[1., 2.]; 2]
        );
        let columns = [row(&[1.]), row(&[2., 3.])];
        assert_eq!(values(&ranks(2).gather(&columns).unwrap()), [1., 2., 3.]);
    }

    #[test]
    fn a_sum_that_a_rank_does_not_enter_is_an_error_of_all() {
        let x = row(&[1.]);
        for addends in [vec![], vec![x.clone()], vec![x.clone(), row(&[1., 2.])]] {
            assert!(ranks(2).add(&[x.clone(), x.clone()], &addends).is_err(), "{addends:?}");
        }
        assert!(ranks(2).gather(&[x]).is_err());
    }

    #[test]
    fn the_error_of_a_rank_ends_the_step() {
        let begun = Mutex::new(Vec::new());
        let outcome = ranks(3).each(vec![0, 1, 2], |rank| {
            begun.lock().unwrap().push(rank);
            if rank == 1 { Err("no memory") } else { Ok(rank) }
        });
        assert_eq!(outcome, Err("no memory"));
        assert!(begun.into_inner().unwrap().contains(&1));
        assert_eq!(ranks(3).each(vec![0, 1, 2], Ok::<_, ()>), Ok(vec![0, 1, 2]));
    }

    #[test]
    fn devices_without_a_sum_are_refused() {
        assert!(Ranks::of(Vec::new()).is_err());
        assert_eq!(Ranks::one(&Device::Cpu).devices().len(), 1);
    }

    #[test]
    fn what_a_rank_changes_is_its_own() {
        let mut counts = [0, 0];
        let inputs: Vec<_> = counts.iter_mut().map(|count| Mutex::new(Cell::new(count))).collect();
        let step = |count: Mutex<Cell<&mut i32>>| {
            *count.into_inner().unwrap().into_inner() += 1;
            Ok::<_, ()>(())
        };
        ranks(2).each(inputs, step).unwrap();
        assert_eq!(counts, [1, 1]);
    }
}
