"""FedConv: learned convolutions that compress and dilate weights."""
