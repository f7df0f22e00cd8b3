# The CUDA operators over the emulated kernels: the glue of csrc/ops/cuda.cpp runs without a GPU,
# behind the CPU key (tests/emulated). Included by the Makefile, after tests/emulation/emulation.mk.
TORCH = $(shell $(PY) -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
TORCH_FLAGS = -DSCHATTOR_EMULATED -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $(TORCH)/include \
  -isystem $(TORCH)/include/torch/csrc/api/include

define emulated_rules
$(EMULATION)/$(1)/operators.o: csrc/ops/cuda.cpp
	@mkdir -p $$(@D)
	@$(CXX) $$(EMULATION_FLAGS) $$(TORCH_FLAGS) $$(HOST_FLAGS_$(1)) -MMD -MP -MF $$@.d -c $$< -o $$@
$(EMULATION)/$(1)/reports.o: tests/emulated/reports.cpp
	@mkdir -p $$(@D)
	@$(CXX) $$(EMULATION_FLAGS) $$(HOST_FLAGS_$(1)) -MMD -MP -MF $$@.d -c $$< -o $$@
$(EMULATION)/$(1)/_ops_emulated.so: $(addprefix $(EMULATION)/$(1)/,operators.o reports.o libkernels.a libruntime.a)
	@$(CXX) -shared $$(LINK_FLAGS_$(1)) $$^ -L$$(TORCH)/lib -ltorch_cpu -lc10 -ldl -Wl,-z,defs -o $$@
-include $(EMULATION)/$(1)/operators.o.d $(EMULATION)/$(1)/reports.o.d
endef
# Python does not run under the address sanitizer's runtime, and takes very long under the race
# detector, which sees the same kernels in tests/kernels.
$(eval $(call emulated_rules,plain))

.PHONY: test-emulated
test-emulated: build
	@echo "== CUDA operators on the processor"
	$(PY) -m pytest -q tests/test_emulated.py
