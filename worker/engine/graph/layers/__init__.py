"""From one ATen call with parameters to a real `nn` module. The registry names the function of each operator."""
