"""Compiling kernels with Numba, to object code; loading.py keeps and loads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from llvmlite import ir
from llvmlite.binding import create_new_function_pass_manager
from llvmlite.ir.instructions import AllocaInstr, StoreInstr
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fastbp.backends.cpu.target import target
from fastbp.errors import FastbpError

NUMBER, POINTER, POINTER64 = "number", "pointer", "pointer to float64"  # kinds of arguments


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Code that only other compiled code calls: handed on as it is, to be linked and optimised in its last caller.

    Numba links a function with all that it calls, optimises both and turns them into machine code, once for every level
    of calls: the machine took more than twice as long to compile, to run no faster.
    """

    class codegen:  # noqa: N801  Numba's name
        """Asked, when a function has been compiled, to note what its Python errors need: kernels raise none."""

        @staticmethod
        def set_env(name: str, env: Any) -> None:
            """Without machine code there is no place to note it."""

    def add_ir_module(self, module: Any) -> None:
        """Without the zeros that Numba writes to every place on the stack when a function begins.

        A call has a place for what it returns, whose address it takes, so that LLVM must keep them: 40 stores each time
        that the machine looks what an instruction is. Nothing here is read before it is written.
        """
        for function in module.functions:
            if function.blocks:
                entry = function.entry_basic_block
                entry.instructions[:] = [i for i in entry.instructions if not _fills_with_zeros(i)]
        super().add_ir_module(module)

    def _optimize_functions(self, module: Any) -> None:
        """As far as it decides what is small enough to be compiled into its callers; all else comes at the end."""
        module.data_layout = self._codegen._data_layout
        manager, builder = create_new_function_pass_manager(), self._codegen._pass_builder()
        manager.add_sroa_pass()
        manager.add_instruction_combine_pass()
        manager.add_simplify_cfg_pass()
        for function in module.functions:
            if not function.is_declaration:
                manager.run(function, builder)

    def finalize(self) -> None:
        """Be ready to be linked."""
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """There is none."""
        return 0


def _fills_with_zeros(instruction: Any) -> bool:
    if not isinstance(instruction, StoreInstr):
        return False
    value, place = instruction.operands
    return isinstance(place, AllocaInstr) and isinstance(value, ir.Constant) and value.constant is None


class _PartCompiler(Compiler):  # type: ignore[misc]
    def define_pipelines(self) -> list[Any]:
        """Numba's usual steps, into a library of that kind."""
        self.state.library = _Part(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return list(super().define_pipelines())


# Kernels are called from compiled code alone: without the wrappers that Python and C would need they compile faster.
# Integer division follows NumPy, so that no division can raise.
kernel = njit(
    nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PartCompiler
)


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """Code that is written out, not loaded: what it lacks is found when it is."""

    def _finalize_final_module(self) -> None:
        self._finalized = True


class Apart(NamedTuple):
    """A kernel that is compiled apart from its callers, by another process meanwhile; they meet when they are loaded.

    ``kinds`` says of arguments that are not an int64 what they are; ``one`` is a number in every kernel.
    """

    dispatcher: Any
    kinds: Mapping[str, str]

    @property
    def symbol(self) -> str:
        return f"fastbp_{self.dispatcher.__name__}"

    def types(self, dtype: str) -> tuple[Any, ...]:
        """Numba's, of the arguments."""
        number = getattr(types, dtype)
        of = {NUMBER: number, POINTER: types.CPointer(number), POINTER64: types.CPointer(types.float64)}
        kinds = {"one": NUMBER, **self.kinds}
        names = inspect.signature(self.dispatcher.py_func).parameters
        return tuple(of[kinds[name]] if name in kinds else types.int64 for name in names)


def called(apart: Apart) -> Any:
    """What compiled code calls where it wants such a kernel."""

    def call(typingctx: Any, *arguments: Any) -> Any:
        given = tuple(types.unliteral(argument) for argument in arguments)
        if given not in (apart.types("float32"), apart.types("float64")):
            raise TypingError(f"{apart.symbol} takes {apart.types('float32')}, got {given}")

        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            function = ir.FunctionType(ir.VoidType(), [context.get_value_type(argument) for argument in sig.args])
            builder.call(cgutils.get_or_insert_function(builder.module, function, apart.symbol), values)
            return context.get_dummy_value()

        return types.void(*given), codegen

    named = inspect.signature(apart.dispatcher.py_func).parameters.values()  # or Numba would hand on one tuple
    first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([first, *named])  # type: ignore[attr-defined]
    return intrinsic(call)


@global_compiler_lock
def library(functions: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> Any:
    """Numba's library of machine code of C functions that call kernels: by name, a kernel and its arguments' types."""
    if config.DISABLE_JIT:
        raise FastbpError("the cpu backend needs Numba's compiler: unset NUMBA_DISABLE_JIT, or take backend='numpy'")
    codegen = cpu_target.target_context.codegen()
    if codegen.magic_tuple() != target():
        raise FastbpError(f"Numba compiles for {codegen.magic_tuple()}, fastbp expected {target()}: NUMBA_CPU_NAME and "
                          "NUMBA_CPU_FEATURES have to be environment variables")  # fmt: skip
    made, parts = _Whole(codegen, "fastbp"), []
    for name, (dispatcher, arguments) in functions.items():
        dispatcher.compile(arguments)
        part = dispatcher.overloads[arguments]
        made.add_ir_module(_calling(part.fndesc, name))
        parts.append(part.library)
    for one in _linked(parts):
        made.add_linking_library(one)
    made.finalize()
    return made


def entry_library(function: Callable[..., None], name: str) -> Any:
    """The library of one C function ``name`` of an int64, which calls the Python function."""
    return library({name: (kernel(function), (types.int64,))})


def _linked(parts: list[_Part]) -> Iterator[Any]:
    """Parts and all that they call, once each."""
    found, waiting = {id(part) for part in parts}, list(parts)
    while waiting:
        yield (library := waiting.pop())
        for other in library._linking_libraries if isinstance(library, _Part) else ():
            if id(other) not in found:
                found.add(id(other))
                waiting.append(other)


def object_code(made: Any) -> bytes:
    """What there is to be linked of such a library."""
    return bytes(made._codegen._tm.emit_object(made._final_module))


def _calling(described: Any, name: str) -> Any:
    """A C function that calls Numba's, which hands back whether there was an error: kernels raise none."""
    context = cpu_target.target_context
    module = context.create_module(name)
    signature = context.call_conv.get_function_type(described.restype, described.argtypes)
    callee = ir.Function(module, signature, described.llvm_func_name)
    arguments = [context.get_value_type(argument) for argument in described.argtypes]
    caller = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    builder = ir.IRBuilder(caller.append_basic_block())
    context.call_conv.call_function(builder, callee, described.restype, described.argtypes, caller.args)
    builder.ret_void()
    return module
