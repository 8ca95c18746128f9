"""Descriptors written as well-known tools write theirs: what each of them does differently, in texts of our own."""

from __future__ import annotations

_CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2"
_RASD, _VSSD = f"{_CIM}/CIM_ResourceAllocationSettingData", f"{_CIM}/CIM_VirtualSystemSettingData"

VSPHERE = f"""<?xml version="1.0" encoding="UTF-8"?>
<!--Made in the style of a vSphere export-->
<Envelope vmw:buildId="build-1" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
        xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common"
  xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="{_RASD}" xmlns:vmw="http://www.vmware.com/schema/ovf"
  xmlns:vssd="{_VSSD}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References>
    <File ovf:href="edge-disk1.vmdk" ovf:id="file1" ovf:size="1000"/>
    <File ovf:href="edge.nvram" ovf:id="file2" ovf:size="270840"/>
  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
    <Disk ovf:capacity="40" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
        ovf:populatedSize="1622540288"/>
    <Disk ovf:capacity="200" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk2"/>
  </DiskSection>
  <NetworkSection>
    <Info>The list of logical networks</Info>
    <Network ovf:name="VM Network"><Description>The VM Network network</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id="edge">
    <Info>A virtual machine</Info>
    <Name>edge</Name>
    <OperatingSystemSection ovf:id="96" vmw:osType="debian12_64Guest">
      <Info>The kind of installed guest operating system</Info>
      <Description>Debian GNU/Linux 12 (64-bit)</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection ovf:transport="iso com.vmware.guestInfo">
      <Info>Virtual hardware requirements</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>edge</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-19</vssd:VirtualSystemType></System>
      <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
        <rasd:Description>Number of Virtual CPUs</rasd:Description>
        <rasd:ElementName>4 virtual CPU(s)</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity>
        <vmw:CoresPerSocket ovf:required="false">2</vmw:CoresPerSocket></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>8192MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>8192</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>SCSI Controller 0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType>
        <vmw:Config ovf:required="false" vmw:key="slotInfo.pciSlotNumber" vmw:value="160"/></Item>
      <Item ovf:required="false"><rasd:AutomaticAllocation>false</rasd:AutomaticAllocation>
        <rasd:ElementName>VirtualVideoCard</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>24</rasd:ResourceType></Item>
      <Item ovf:required="false"><rasd:ElementName>VirtualVMCIDevice</rasd:ElementName>
        <rasd:InstanceID>6</rasd:InstanceID>
        <rasd:ResourceSubType>vmware.vmci</rasd:ResourceSubType><rasd:ResourceType>1</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>Hard Disk 1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>7</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
        <vmw:Config ovf:required="false" vmw:key="backing.writeThrough" vmw:value="false"/></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:ElementName>Hard Disk 2</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource><rasd:InstanceID>8</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>7</rasd:AddressOnParent><rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>VM Network</rasd:Connection>
        <rasd:Description>VmxNet3 ethernet adapter on "VM Network"</rasd:Description>
        <rasd:ElementName>Ethernet 1</rasd:ElementName><rasd:InstanceID>9</rasd:InstanceID>
        <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType>
        <vmw:Config ovf:required="false" vmw:key="wakeOnLanEnabled" vmw:value="true"/></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
      <vmw:ExtraConfig ovf:required="false" vmw:key="nvram" vmw:value="ovf:/file/file2"/>
    </VirtualHardwareSection>
    <vmw:BootOrderSection vmw:instanceId="7" vmw:type="disk" ovf:required="false"><Info>Boot order</Info>
        </vmw:BootOrderSection>
  </VirtualSystem>
</Envelope>
"""

VIRTUALBOX = f"""<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
        xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="{_RASD}" xmlns:vssd="{_VSSD}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
        xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References><File ovf:id="file1" ovf:href="box-disk001.vmdk"/></References>
  <DiskSection><Info>List of the virtual disks used in the package</Info>
    <Disk ovf:capacity="10737418240" ovf:diskId="vmdisk1" ovf:fileRef="file1"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
        vbox:uuid="00000000-0000-4000-8000-000000000001"/>
  </DiskSection>
  <NetworkSection><Info>Logical networks used in the package</Info>
    <Network ovf:name="NAT"><Description>Logical network used by this appliance.</Description></Network>
        </NetworkSection>
  <VirtualSystem ovf:id="box"><Info>A virtual machine</Info>
    <OperatingSystemSection ovf:id="94"><Info>The kind of installed guest operating system</Info>
        <Description>Ubuntu_64</Description>
      <vbox:OSType ovf:required="false">Ubuntu_64</vbox:OSType></OperatingSystemSection>
    <VirtualHardwareSection><Info>Virtual hardware requirements for a virtual machine</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>box</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType></System>
      <Item><rasd:Caption>1 virtual CPU</rasd:Caption><rasd:Description>Number of virtual CPUs</rasd:Description>
        <rasd:ElementName>1 virtual CPU</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:Caption>1024 MB of memory</rasd:Caption>
        <rasd:ElementName>1024 MB of memory</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:Caption>sataController0</rasd:Caption>
        <rasd:ElementName>sataController0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>AHCI</rasd:ResourceSubType>
        <rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>usb</rasd:ElementName><rasd:InstanceID>4</rasd:InstanceID>
        <rasd:ResourceType>23</rasd:ResourceType></Item>
      <Item ovf:required="false"><rasd:AddressOnParent>3</rasd:AddressOnParent>
        <rasd:AutomaticAllocation>false</rasd:AutomaticAllocation>
        <rasd:ElementName>sound</rasd:ElementName><rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>ensoniq1371</rasd:ResourceSubType>
        <rasd:ResourceType>35</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk1</rasd:ElementName>
        <rasd:HostResource>/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>6</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AutomaticAllocation>true</rasd:AutomaticAllocation><rasd:Connection>NAT</rasd:Connection>
        <rasd:ElementName>Ethernet adapter on 'NAT'</rasd:ElementName><rasd:InstanceID>7</rasd:InstanceID>
        <rasd:ResourceSubType>E1000</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType></Item>
    </VirtualHardwareSection>
    <vbox:Machine ovf:required="false" version="1.19-linux" uuid="{{00000000-0000-4000-8000-000000000002}}" name="box">
      <ovf:Info>Complete VirtualBox machine configuration in VirtualBox format</ovf:Info>
      <Hardware><CPU count="1"/><Firmware type="EFI"/></Hardware>
    </vbox:Machine>
  </VirtualSystem>
</Envelope>
"""

XEN = f"""<?xml version="1.0" encoding="utf-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="{_RASD}" xmlns:vssd="{_VSSD}"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ovf:version="1.0.0" xml:lang="en-US">
  <ovf:References><ovf:File ovf:id="disk-a" ovf:href="a.vhd" ovf:size="52224"/></ovf:References>
  <ovf:DiskSection><ovf:Info>Section Element</ovf:Info>
    <ovf:Disk ovf:diskId="disk-a" ovf:fileRef="disk-a" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2 ^ 30"
      ovf:format="http://www.microsoft.com/technet/virtualserver/downloads/vhdspec.mspx"/></ovf:DiskSection>
  <ovf:NetworkSection><ovf:Info>Section Element</ovf:Info><ovf:Network ovf:name="Network 0"/></ovf:NetworkSection>
  <ovf:VirtualSystem ovf:id="xen"><ovf:Info>Xen VM</ovf:Info><ovf:Name>xen</ovf:Name>
    <ovf:VirtualHardwareSection ovf:transport=""><ovf:Info>hardware</ovf:Info>
      <ovf:System><vssd:ElementName>xen</vssd:ElementName><vssd:InstanceID>1</vssd:InstanceID>
        <vssd:VirtualSystemType>hvm-3.0-unknown</vssd:VirtualSystemType></ovf:System>
      <ovf:Item><rasd:AllocationUnits>count</rasd:AllocationUnits><rasd:ElementName>2 CPUs</rasd:ElementName>
        <rasd:InstanceID>cpu-1</rasd:InstanceID>
        <rasd:Limit>100000</rasd:Limit><rasd:Reservation>1</rasd:Reservation><rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity><rasd:Weight>512</rasd:Weight></ovf:Item>
      <ovf:Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ElementName>512 MB</rasd:ElementName>
        <rasd:InstanceID>mem-1</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></ovf:Item>
      <ovf:Item ovf:required="false"><rasd:Address>00:16:3E:01:02:03</rasd:Address>
        <rasd:Connection>Network 0</rasd:Connection>
        <rasd:ElementName>eth</rasd:ElementName><rasd:InstanceID>vif-1</rasd:InstanceID>
        <rasd:ResourceType>10</rasd:ResourceType></ovf:Item>
      <ovf:Item><rasd:Address>0</rasd:Address><rasd:ElementName>IDE</rasd:ElementName>
        <rasd:InstanceID>ide-1</rasd:InstanceID>
        <rasd:ResourceType>5</rasd:ResourceType></ovf:Item>
      <ovf:Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk-a</rasd:HostResource>
        <rasd:InstanceID>vbd-1</rasd:InstanceID><rasd:Parent>ide-1</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType></ovf:Item>
    </ovf:VirtualHardwareSection>
  </ovf:VirtualSystem>
</ovf:Envelope>
"""

COMPOSED = f"""<?xml version='1.0' encoding='utf-8'?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
        xmlns:vmw="http://www.vmware.com/schema/ovf"
  xmlns:rasd="{_RASD}" xmlns:vssd="{_VSSD}">
  <References><File ovf:id="root" ovf:href="appliance.qcow2.gz" ovf:compression="gzip" ovf:size="777"/></References>
  <DiskSection><Info>Virtual disk information</Info>
    <Disk ovf:diskId="root" ovf:capacity="${{rootsize}}" ovf:capacityAllocationUnits="byte*1024*1024*1024"
        ovf:fileRef="root"
      ovf:format="http://www.gnome.org/~markmc/qcow-image-format.html"/></DiskSection>
  <NetworkSection><Info>networks</Info><Network ovf:name="mgmt"/><Network ovf:name="data"/></NetworkSection>
  <DeploymentOptionSection><Info>sizes</Info>
    <Configuration ovf:id="small"><Label ovf:msgid="small">Small</Label><Description>1 CPU</Description></Configuration>
    <Configuration ovf:id="large" ovf:default="true"><Label>Large</Label><Description>4 CPUs</Description>
        </Configuration></DeploymentOptionSection>
  <VirtualSystemCollection ovf:id="suite"><Info>suite</Info><Name>suite</Name>
    <ProductSection><Info>product</Info><Product>Suite</Product><Vendor>Somebody</Vendor><Version>3</Version>
        <FullVersion>3.1.4</FullVersion>
      <Property ovf:key="rootsize" ovf:type="uint16" ovf:value="20" ovf:userConfigurable="true"
        ovf:qualifiers="MinValue(10) MaxValue(100)">
        <Label>Size of the root disk (GiB)</Label></Property>
      <Property ovf:key="secret" ovf:type="string" ovf:password="true" ovf:userConfigurable="true"
        ovf:qualifiers="MinLen(8)"/></ProductSection>
    <EulaSection><Info>licence</Info><License>You may use it.
You may not sell it.</License></EulaSection>
    <StartupSection><Info>order</Info><Item ovf:id="db" ovf:order="1" ovf:startDelay="60" ovf:waitingForGuest="true"/>
      <Item ovf:id="web" ovf:order="2"/></StartupSection>
    <VirtualSystem ovf:id="db"><Info>db</Info><VirtualHardwareSection ovf:transport="iso"><Info>h</Info>
      <Item ovf:configuration="small"><rasd:ElementName>c</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item ovf:configuration="large"><rasd:ElementName>c</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^30</rasd:AllocationUnits><rasd:ElementName>m</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:ElementName>s</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>virtio-scsi</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>d</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/root</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
    </VirtualHardwareSection></VirtualSystem>
    <VirtualSystem ovf:id="web"><Info>web</Info><VirtualHardwareSection ovf:transport="iso"><Info>h</Info>
      <Item><rasd:ElementName>c</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ElementName>m</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
      <Item><rasd:Connection>data</rasd:Connection><rasd:ElementName>n</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>virtio</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType></Item>
    </VirtualHardwareSection></VirtualSystem>
  </VirtualSystemCollection>
  <Strings xml:lang="en-US"><Msg ovf:msgid="small">Small size</Msg></Strings>
</Envelope>
"""
