"""Methods that train many architectures inside one supernet."""
