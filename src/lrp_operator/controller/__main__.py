"""`python -m lrp_operator.controller` is `lrp-controller`."""

from lrp_operator.controller.main import main

main()
