"""Hand-written passes and vendor kernels, each measured to be worth more than its plain form."""
