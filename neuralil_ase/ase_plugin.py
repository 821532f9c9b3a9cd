"""What ``ase info --plugins`` shows. Imports nothing heavy: ASE loads this module at every start."""

try:
    from ase._4.plugins.plugin import CalculatorPlugin
except (
    ImportError
):  # ase._4 is announced as subject to change; without it ASE lists no plugins at all.
    __ase_plugins__ = set()
else:
    __ase_plugins__ = {
        CalculatorPlugin(
            name="neuralil",
            citation="H. Montes-Campos, J. Carrete, S. Bichelmaier, L. M. Varela, G. K. H. Madsen, "
            "J. Chem. Inf. Model. 62, 88 (2022), doi:10.1021/acs.jcim.1c01380",
            implementation="neuralil_ase.calculator.NeuralILCalculator",
        )
    }
