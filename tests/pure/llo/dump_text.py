"""Builds small dumps in the compiler's format."""

LEGEND = "= control target key start\nLB: loop body\n= control target key end\n\n"


def dump(*bundles):
    """Text of a dump; a bundle is its instructions, or (label, instructions, comment)."""
    lines = []
    for number, bundle in enumerate(bundles):
        label, body, comment = bundle if isinstance(bundle, tuple) else ("", bundle, "")
        address = "0" if number == 0 else f"{number:#x}"
        head = f"{address:>6} {label}:" if label else f"{address:>6}   :"
        tail = f" /* {comment} */" if comment else ""
        lines.append(f"{head}  {{ {body} }}{tail}" if body else f"{head}  {{}}{tail}")
    return LEGEND + "\n".join(lines) + "\n"


def operand(name, index, shape="s32[4]", space="hbm"):
    return (
        f"{name} = inlined_call_operand.{space} [shape: {shape}, index: {index}, kind: input,"
        f" shape index: {{}}] /* operand {index} */"
    )


def prefetch(index=0, allocation="#allocation0", granules=1):
    """Bundles that bring operand `index` to SMEM."""
    return (
        operand(f"%s90{index}_s0", index) + f"  ;;  %s91{index}_s1 = smov [{allocation}]",
        f"%92{index} = dma.hbm_to_smem /*hbm=*/%s90{index}_s0, /*size_in_granules=*/{granules},"
        f" /*smem=*/%s91{index}_s1, /*dst_syncflagno=*/[#allocation9]",
        f"%93{index} = dma.done.wait [#allocation9], {granules}",
        f"%94{index} = vsyncadd [#allocation9], {(1 << 32) - granules}",
    )
