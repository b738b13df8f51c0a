"""Tasks whose ground truth is a mask image, from which boxes and points are made (see `answers.rle.objects_in`)."""

from visurf_ray.answers.boxes import Target
from visurf_ray.answers.rle import Rle, bounding_box, encode, objects_in
from visurf_ray.data.pictures import load_mask
from visurf_ray.data.rows import Row
from visurf_ray.tasks.box_task import BoxTask


class MaskTask(BoxTask):
    """A box task whose rows may have a mask image, `Row.mask`, in place of a solution."""

    def targets(self, row: Row) -> list[Target]:
        if row.mask is None:
            return super().targets(row)
        mask = load_mask(row.mask, row.where)
        return objects_in(mask, bounding_box(mask) if self.one_object and mask.any() else None)

    def masks(self, row: Row) -> dict[str, Rle]:
        if row.mask is None:
            return super().masks(row)
        return {"mask": encode(load_mask(row.mask, row.where))}
