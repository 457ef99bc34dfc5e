"""PyTorch works on arrays as on any others. Its wheel is too large for CI: where it is installed, this runs."""

import hetmem
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def test_tensors_of_arrays_are_their_memory_wherever_pages_are() -> None:
    with hetmem.Runtime(["private:emulated,size=64M", "coherent:emulated,size=64M"]) as runtime:
        array = runtime.full((1024, 1024), 1.0, "f4")
        tensor = torch.from_numpy(array)
        assert tensor.data_ptr() == array.ctypes.data
        assert runtime.migrate(array, "private0").moved == 1024
        assert float(tensor.sum()) == 1 << 20
        runtime.migrate(array[:512], "private0")
        runtime.migrate(array[512:], "coherent0")
        tensor.mul_(2)
        assert float((tensor @ tensor)[0, 0]) == 4096
        assert array.sum() == 2 << 20
        own = torch.ones(1024, 1024)
        assert runtime.adopt(own.numpy()) > 0
        assert runtime.migrate(own.numpy(), "private0").moved >= 1023
        assert float(own.sum()) == 1 << 20
        weights = runtime.full((512, 512), 0.5, "f4")
        parameter = torch.nn.Parameter(torch.from_numpy(weights))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        for _ in range(3):
            runtime.migrate(weights, "private0")
            optimizer.zero_grad()
            (parameter * parameter).sum().backward()
            optimizer.step()
        assert abs(float(weights[0, 0]) - 0.5 * 0.8**3) < 1e-6
    del array
    assert float(tensor.sum()) == 2 << 20
