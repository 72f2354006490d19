"""How far the weights of two bundles are apart: the largest difference of a number, over the largest number of its tensor."""
import array
import json
import sys

TOLERANCE = 1e-3


def tensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    for name, entry in header.items():
        assert entry["dtype"] == "F32", (path, name, entry["dtype"])
        begin, end = entry["data_offsets"]
        yield name, array.array("f", data[begin:end])


one, two = (dict(tensors(path)) for path in sys.argv[1:3])
assert one.keys() == two.keys(), one.keys() ^ two.keys()
worst, numbers, equal = (0.0, ""), 0, 0
for name, values in one.items():
    assert len(values) == len(two[name]), name
    scale = max(1e-6, max(map(abs, values)))
    worst = max(worst, (max(abs(a - b) for a, b in zip(values, two[name])) / scale, name))
    numbers += len(values)
    equal += sum(a == b for a, b in zip(values, two[name]))
print(f"{numbers} weights, {100 * equal / numbers:.1f} % equal to the bit; largest difference {worst[0]:.1e} of the largest "
      f"weight of its tensor ({worst[1]}); tolerance {TOLERANCE:.0e}")
sys.exit(worst[0] > TOLERANCE)
