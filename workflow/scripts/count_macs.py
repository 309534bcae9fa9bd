"""Count the multiply-accumulates of a source model and of what was re-engineered from it."""

from pathlib import Path


def count_macs(macs, source, reengineered, image_shape):
    """Write to `macs` the counts for one image of these two modules."""
    from seam.files import write_json
    from seam.macs import count

    before, after = count(source, image_shape), count(reengineered, image_shape)
    write_json(macs, {"source": before["dense"], "reengineered_dense": after["dense"], "reengineered": after["sparse"]})


if "snakemake" in globals():
    from seam import models, reengineer
    from seam.files import read_json
    from seam.progress import job

    with job(snakemake.log[0]):
        count_macs(
            snakemake.output.macs,
            models.open(Path(snakemake.input.weights).parent).module,
            reengineer.load(Path(snakemake.input.masks).parent, Path(snakemake.input.weights).parent),
            (3, *read_json(snakemake.input.manifest)["size"]),
        )
