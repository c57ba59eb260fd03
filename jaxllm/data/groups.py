"""Examples that are several texts each, packed so that those of an example are in one row."""

from dataclasses import dataclass, field

import numpy as np

from jaxllm.data.corpus import Examples
from jaxllm.data.packing import Rows, fill_packed, slots


@dataclass(frozen=True)
class Groups(Examples):
    """n groups of G texts; as `Examples`, but ``offsets`` are int64[n * G + 1].

    Text ``i * G + g`` is text g of group i. What is packed into rows is the group: all its texts
    are in one row, each a segment.

    width: G.
    """

    width: int = field(kw_only=True)

    @property
    def lengths(self) -> np.ndarray:
        """int64[n]: tokens of each group, all its texts together."""
        return np.diff(self.offsets[:: self.width])

    def lengths_of(self, members: np.ndarray) -> np.ndarray:
        """int64[m]: tokens of the groups `members`."""
        begins = members * self.width
        return self.offsets[begins + self.width] - self.offsets[begins]

    def slots(self, row_length: int, *, packing: bool) -> int:
        """P, the groups that a row holds at most."""
        return max(1, slots(row_length) // self.width) if packing else 1

    def fill_texts(
        self,
        rows: Rows,
        text_labels: np.ndarray | None,
        *,
        row_length: int,
        height: int,
        packing: bool,
    ) -> dict[str, np.ndarray]:
        """`fill_packed` of the texts, with a label for each or none; ``label_weights`` float32
        [B, P] are those of groups, ``head_positions`` int32 [B, P * G] and ``labels`` of texts.
        """
        width = self.width
        texts = Examples(
            self.tokens, self.type_ids, self.offsets, text_labels, self.rows, self.report
        )
        each = rows.members[:, None] * width + np.arange(width)
        batch = fill_packed(
            texts,
            Rows(each.ravel(), rows.starts * width),
            row_length=row_length,
            max_per_row=self.slots(row_length, packing=packing) * width,
            height=height,
        )
        batch["label_weights"] = batch["label_weights"][:, ::width]
        return batch
