from apportion.compressors.grids.affine import fit_grid
from apportion.compressors.grids.codebook import Codebook
from apportion.compressors.grids.fit import fit_weights
from apportion.compressors.grids.grid import Grid, GridOptions, joined

__all__ = ["Codebook", "Grid", "GridOptions", "fit_grid", "fit_weights", "joined"]
