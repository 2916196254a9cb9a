//! The weights packed into panels once a call, where many tiles are multiplied by them.

use super::block::Block;
use super::kernels::right::{Pack, Packed, Right};
use super::layer_view::RightFactors;
use super::simd::{run, Real};
use super::threads::Team;

/// The panels of the four right factors.
pub struct PackedFactors<T: Real> {
    panels: [Block<T>; 4],
    sizes: [[usize; 2]; 4],
}

impl<T: Real> PackedFactors<T> {
    pub fn new(team: &mut Team<T>, factors: &RightFactors<T>) -> Self {
        let RightFactors { in_proj, out_proj, linear1, linear2 } = factors;
        let rights = [in_proj, out_proj, linear1, linear2];
        let sizes = rights.map(|right| [right.depth(), right.columns()]);
        let mut panels = sizes.map(|[depth, columns]| Block::new(Packed::<T>::len(depth, columns)));
        team.for_each(rights.into_iter().zip(panels.iter_mut()), |(&right, panels), _| {
            run(Pack { right, columns: right.columns(), panels });
        });
        Self { panels, sizes }
    }

    /// The panels in place of the weights.
    pub fn with<R>(&self, work: impl FnOnce(&RightFactors<T>) -> R) -> R {
        let [in_proj, out_proj, linear1, linear2] = std::array::from_fn(|i| {
            Packed::new(&self.panels[i], self.sizes[i][0], self.sizes[i][1])
        });
        work(&RightFactors {
            in_proj: Right::Packed(&in_proj),
            out_proj: Right::Packed(&out_proj),
            linear1: Right::Packed(&linear1),
            linear2: Right::Packed(&linear2),
        })
    }
}
