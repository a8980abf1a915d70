"""Wavelengths of any unit become nanometres once, and what cannot be a wavelength is refused with the values seen."""

import numpy as np
import pytest

from alliance.errors import InputError
from alliance.sensors.wavelengths import to_nanometres

NM = [420.0, 560.5, 2450.0]


@pytest.mark.parametrize(
    ("factor", "units"),
    [
        *[
            (1, units)
            for units in (
                "nm",
                "Nanometers",
                "nanometres",
                "nanometers (nm)",
                "[nm]",
                "1e-9 m",
                "10^-9 m",
                None,
                "",
                "Unknown",
            )
        ],
        *[(1e-3, units) for units in ("um", "µm", "μm", "Micrometers", "micrometre", "microns", None)],
        *[(1e-9, units) for units in ("m", "meters", "metre", None)],
        *[(10, units) for units in ("Angstrom", "angstroms", "Å", "Ångström")],
        (1e-6, "mm"),
    ],
)
def test_every_unit_is_converted_once(factor: float, units: str | None) -> None:
    assert to_nanometres([value * factor for value in NM], units) == NM
    assert to_nanometres(to_nanometres([value * factor for value in NM], units)) == NM


@pytest.mark.parametrize("units", ["cm-1", "cm^-1", "1/cm", "cm**-1", "cm⁻¹", "Wavenumber", "wavenumber (cm-1)"])
def test_wavenumbers_are_turned_into_wavelengths(units: str) -> None:
    """10,000 per cm are one micrometre each."""
    np.testing.assert_allclose(to_nanometres([10_000, 1_000], units), [1000, 10_000])


@pytest.mark.parametrize(
    ("values", "units", "seen"),
    [
        ([0.42, 0.98], "nm", "0.42 to 0.98 nm"),
        ([420, 980], "um", "420 to 980 um"),
        ([0, 500], None, "0 to 500"),
        ([1, 1000], None, "1 to 1000"),
        ([4200, 24500], None, "4200 to 24500"),
        ([float("nan"), 500], "nm", "nan"),
        ([420, 980], "parsecs", "unknown unit 'parsecs'"),
    ],
)
def test_what_cannot_be_wavelengths_is_refused(values: list[float], units: str | None, seen: str) -> None:
    with pytest.raises(InputError, match=seen.replace("(", r"\(")):
        to_nanometres(values, units)
