"""Supports PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775). The
training of these adapters began by subtracting a low-rank part from the model's weight W.

Whenever PEFT loads such an adapter, it subtracts this part again: it computes ``W - Q Q^T W + scale * B A``.
gemlet treats ``-Q Q^T W + scale * B A`` as one adapter with twice the rank r. The columns of Q are
orthonormal:

- PiSSA: the left singular vectors of W that belong to the r largest singular values.
- OLoRA: a basis of the space of W's first r columns. The subtracted part is multiplied by the scale.
"""

from __future__ import annotations

from gemlet.base.arrays import NDArray, np

__all__ = ["INITIAL", "with_initial"]

INITIAL = ("pissa", "olora")


def with_initial(
    how: str, weight: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32], scale: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns A and B, extended by the part that PEFT subtracts from the ``weight`` [rows, cols]. ``how`` is
    one of INITIAL.

    >>> weight = np.diag(np.array([3, 2, 1], np.float32))
    >>> a, b = with_initial("pissa", weight, np.zeros((1, 3), np.float32), np.zeros((3, 1), np.float32), 2.0)
    >>> (weight + 2 * b @ a).round(5).tolist()
    [[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
    """
    wide, rank = weight.astype(np.float64), len(a)
    if how == "olora":
        basis, share = np.linalg.qr(wide[:, :rank])[0], 1.0
    else:
        basis, share = _largest(wide, rank), 1.0 / scale
    return (
        np.concatenate([a, (basis.T @ wide).astype(np.float32)]),
        np.concatenate([b, (-share * basis).astype(np.float32)], axis=1),
    )


def _largest(weight: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The first ``rank`` left singular vectors. They are computed from the product of the matrix with its
    transpose, or of the transpose with the matrix, whichever is smaller. The eigenvalues of the product are
    the squares of the singular values. This is exact enough, because only the largest values matter."""
    rows, cols = weight.shape
    if rows <= cols:
        return np.linalg.eigh(weight @ weight.T)[1][:, ::-1][:, :rank]
    right = np.linalg.eigh(weight.T @ weight)[1][:, ::-1][:, :rank]
    return np.linalg.qr(weight @ right)[0]
