"""Parts `properties` and `build`: the machine, and the program made for it from what is there or was carried along."""
import glob
import json
import os
import re
import shutil
import sys
import tarfile

from context import ROOT, Failed, Skipped

QUERY = ["name", "compute_cap", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "clocks.sm",
         "power.limit", "temperature.gpu", "mig.mode.current"]


def first_line(context, command, pattern=r"(.*)"):
    """What the pattern finds first in a command's output; None where the command is missing or says nothing of the kind."""
    if not shutil.which(command[0]) and not os.path.exists(command[0]):
        return None
    try:
        out, _ = context.run(command)
    except Failed:
        return None
    found = re.search(pattern, out)
    return found.group(1).strip() if found else None


def nvidia_folders():
    """Folders of the wheels nvidia-* beside this Python: {"cu13": ..., "cudnn": ...}."""
    return {os.path.basename(folder): folder for path in sys.path for folder in sorted(glob.glob(os.path.join(path, "nvidia", "*")))
            if os.path.isdir(folder)}


def nvcc_of():
    return shutil.which("nvcc") or next((p for p in ("/usr/local/cuda/bin/nvcc",) if os.path.exists(p)), None)


def properties(context, figures):
    nvcc = nvcc_of()
    figures["processors"] = len(os.sched_getaffinity(0))
    figures["system"] = " ".join(os.uname()[i] for i in (0, 2, 4))
    figures["nvcc"] = nvcc and first_line(context, [nvcc, "--version"], r"release .*, (V\S+)")
    figures["cmake"] = first_line(context, ["cmake", "--version"], r"version (\S+)")
    figures["cc"] = first_line(context, ["cc", "--version"])
    figures["glibc"] = os.confstr("CS_GNU_LIBC_VERSION")
    figures["python"] = sys.version.split()[0]
    figures["wheels"] = {name: path for name, path in nvidia_folders().items()}
    if context.stand_in:
        return
    text = first_line(context, ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"])
    if text is None:
        raise Failed("nvidia-smi shows no GPU")
    figures["gpu"] = dict(zip(QUERY, (value.strip() for value in text.split(","))))


def plan(context, figures):
    """The device's true properties, for `ddpm plan --gpu` on machines without it, and what it foretells by them."""
    context.run([context.program("ddpm"), "plan", "--help"])
    if "--write-properties" not in context.last_output:
        raise Skipped("ddpm plan has no --write-properties")
    if context.stand_in:
        raise Skipped("no GPU has the stand-in's properties")
    path = os.path.join(context.out, "device.json")
    context.run([context.program("ddpm"), "plan", "--write-properties", path])
    with open(path) as f:
        figures["device"] = json.load(f)
    out, _ = context.run([context.program("ddpm"), "plan", "configs/ddpm-cifar10.yaml", "--batch", 128, "--gpu", path, "--json"])
    figures["ddpm-cifar10, 128"] = {name: value for name, value in json.loads(out).items() if not isinstance(value, list)}


# ---- the build ----


def system_toolkit():
    nvcc = nvcc_of()
    return os.path.dirname(os.path.dirname(os.path.realpath(nvcc))) if nvcc else None


def set_library_path(context):
    """cuDNN opens its parts and NVRTC by name while it runs, wherever the program was linked to it."""
    folders = [os.path.join(path, "lib") for path in nvidia_folders().values()]
    folders += [os.path.join(system_toolkit() or "", "lib64"), *context.environment.get("LD_LIBRARY_PATH", "").split(":")]
    context.environment["LD_LIBRARY_PATH"] = ":".join(path for path in folders if path and os.path.isdir(path))


def toolkit(context):
    """A folder with nvcc, the runtime's and the libraries' headers and libraries, and cuDNN's folder: the system's, completed
    by the wheels that PyTorch came with."""
    root, wheels = system_toolkit(), nvidia_folders()
    if root is None:
        raise Failed("no nvcc")
    cudnn = root if os.path.exists(os.path.join(root, "include", "cudnn.h")) else wheels.get("cudnn")
    if "cu13" not in wheels or all(os.path.exists(os.path.join(root, name)) for name in ("include/cublasLt.h", "lib64/libcublasLt.so")):
        return root, cudnn
    return merged(context, root, wheels["cu13"]), cudnn


def merged(context, root, wheel):
    """A toolkit of links: the system's, and what only the wheel has. CMake asks for libraries without a version in their
    names, which wheels lack."""
    folder = context.folder("toolkit")
    for part in ("bin", "nvvm"):
        os.symlink(os.path.join(root, part), os.path.join(folder, part))
    for part, sources in (("include", ["include"]), ("lib64", ["lib64", "lib"])):
        os.makedirs(os.path.join(folder, part))
        for source in [os.path.join(base, name) for base in (root, wheel) for name in sources]:
            for name in sorted(os.listdir(source)) if os.path.isdir(source) else []:
                for link in {name, re.sub(r"\.so\..*", ".so", name)}:
                    if not os.path.lexists(os.path.join(folder, part, link)):
                        os.symlink(os.path.join(source, name), os.path.join(folder, part, link))
    return folder


def prefix_options(context):
    """CMake's options for the libraries that were carried along; none where nothing was."""
    archive = os.path.join(context.options.carry, "prefix.tar.xz")
    if not os.path.exists(archive):
        return []
    prefix = os.path.join(context.work, "prefix")
    if not os.path.isdir(prefix):
        with tarfile.open(archive) as tar:
            tar.extractall(context.work, filter="tar") if hasattr(tarfile, "tar_filter") else tar.extractall(context.work)
    lib = os.path.join(prefix, "lib")
    # DT_RPATH, unlike DT_RUNPATH, also serves the libraries that these libraries need
    return [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPKG_CONFIG_EXECUTABLE={prefix}/bin/pkg-config",
            f"-DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags,-rpath,{lib},-rpath-link,{lib}"]


def configure_command(context, root, cudnn, architecture):
    command = ["cmake", "-S", ROOT, "-B", context.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DDDPM_CUDA=ON",
               f"-DDDPM_CUDA_ARCHITECTURES={architecture}", f"-DCUDAToolkit_ROOT={root}", f"-DDDPM_COMMIT={commit_carried(context)}",
               "-DDDPM_WERROR=OFF", *prefix_options(context)]  # another compiler than ours may warn of other things
    return command + ([f"-DCUDNN_ROOT={cudnn}"] if cudnn else [])


def commit_carried(context):
    path = os.path.join(context.options.carry, "commit")
    return open(path).read().strip() if os.path.exists(path) else ""


def op_test_names():
    return sorted(os.path.basename(path)[:-2] for path in glob.glob(os.path.join(ROOT, "tests", "op", "test_*.c")))


PROGRAMS = ["ddpm", "tests/golden_check", "tests/gpu_op_parity"]


def build(context, figures):
    if context.stand_in:
        for name in PROGRAMS:
            if not os.access(context.program(name), os.X_OK):
                raise Failed(f"{context.program(name)}: not built")
    else:
        root, cudnn = toolkit(context)
        capability = first_line(context, ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], r"(\d+\.\d+)")
        architecture = (capability or "9.0").replace(".", "") + "-real"
        figures["toolkit"], figures["cudnn"], figures["architecture"] = root, cudnn, architecture
        out, figures["configure_s"] = context.run(configure_command(context, root, cudnn, architecture))
        figures["configured"] = re.findall(r"^-- ((?:CUDA backend|cuDNN).*)", out, re.M)
        if "cuDNN: ON" not in out:
            figures["note"] = "without cuDNN: the kernels' own products are slow"
        targets = [os.path.basename(name) for name in PROGRAMS] + op_test_names()
        _, figures["build_s"] = context.run(["cmake", "--build", context.build, "--target", *targets])
    figures["version"] = context.run([context.program("ddpm"), "--version"])[0].splitlines()
